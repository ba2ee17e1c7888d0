"""Every kind of model, in one place: assets, configuration, commands and charts derive from it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from features.registry import MODES
from models.hyperparameters import (
    CnnConfig,
    GbtConfig,
    GruConfig,
    KnnConfig,
    KnnSemiConfig,
    LstmConfig,
    MlpConfig,
    TransformerConfig,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from features.registry import InputKind, Mode
    from models.base import Classifier


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Where a model's class is (imported only when built), its configuration, what it eats."""

    module: str
    classifier: str
    config: type
    input_kind: InputKind
    library: str  # the distribution that trains it
    description: str

    def build(
        self, config: Any, n_classes: int, *, seed: int = 0, device: str = "auto"
    ) -> Classifier:
        kind = getattr(import_module(self.module), self.classifier)
        return kind(config, n_classes, seed=seed, device=device)


MODELS = {
    "gbt": ModelSpec(
        "models.gbt",
        "Gbt",
        GbtConfig,
        "summary",
        "xgboost",
        "gradient-boosted trees on window statistics",
    ),
    "mlp": ModelSpec(
        "models.mlp",
        "Mlp",
        MlpConfig,
        "summary",
        "torch",
        "multilayer perceptron on piecewise-linear window statistics",
    ),
    "knn": ModelSpec(
        "models.knn",
        "Knn",
        KnnConfig,
        "summary",
        "numpy",
        "ten nearest training windows by their statistics",
    ),
    "knn_semi": ModelSpec(
        "models.knn",
        "KnnSemi",
        KnnSemiConfig,
        "summary",
        "numpy",
        "nearest windows, a fifth of the episodes labelled, the others pseudo-labelled",
    ),
    "cnn": ModelSpec(
        "models.cnn",
        "Cnn",
        CnnConfig,
        "tensor",
        "torch",
        "residual convolutions on windows",
    ),
    "gru": ModelSpec(
        "models.recurrent",
        "Gru",
        GruConfig,
        "tensor",
        "torch",
        "bidirectional gated recurrent units on windows",
    ),
    "lstm": ModelSpec(
        "models.recurrent",
        "Lstm",
        LstmConfig,
        "tensor",
        "torch",
        "bidirectional long short-term memory on windows",
    ),
    "transformer": ModelSpec(
        "models.transformer",
        "Transformer",
        TransformerConfig,
        "tensor",
        "torch",
        "transformer encoder on windows",
    ),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A model in a mode: the unit that is trained, stored and reported."""

    model: str
    mode: Mode

    @property
    def name(self) -> str:
        return f"{self.model}_{self.mode}"

    @property
    def spec(self) -> ModelSpec:
        return MODELS[self.model]


VARIANTS = tuple(Variant(model, mode) for model in MODELS for mode in MODES)


def variant(model: str, mode: str) -> Variant:
    """The variant of these names.

    Raises:
        ValueError: there is none; the message names those there are.
    """
    for known in VARIANTS:
        if (known.model, known.mode) == (model, mode):
            return known
    raise ValueError(
        f"no model {model!r} in mode {mode!r}; models are {', '.join(MODELS)}, "
        f"modes {', '.join(MODES)}"
    )


def unknown_name(values: Any, known: Collection[str], what: str) -> str | None:
    """What to say of the first key that does not exist; None: all do."""
    for name in values if isinstance(values, dict) else ():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
            return f"no {what} {name!r}; {hint}"
    return None


def model_config(model: str, values: Mapping[str, Any]) -> Any:
    """Typed hyper-parameters of a model from plain values, defaults for what is not given.

    Raises:
        ValueError: an unknown name (the nearest known is named) or a value of another type.
    """
    kind = MODELS[model].config
    known = {field.name: field for field in fields(kind)}
    unknown = unknown_name(values, known, "hyper-parameter")
    if unknown:
        raise ValueError(f"{model}: {unknown}")
    for name, value in values.items():
        wanted = type(known[name].default)
        if isinstance(value, bool) != (wanted is bool) or not isinstance(
            value, (int, float) if wanted is float else wanted
        ):
            raise ValueError(f"{model}.{name} is {value!r}, no {wanted.__name__}")
    return kind(**values)
