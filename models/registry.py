"""The models. Assets, settings, commands and charts derive from this list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from config.messages import unknown
from episodes.settings import settings_errors
from features.registry import MODES, InputKind, Mode
from models.base import Classifier
from models.hyperparameters import (
    CnnConfig,
    EnsembleConfig,
    GbtConfig,
    GruConfig,
    KnnConfig,
    KnnSemiConfig,
    LstmConfig,
    MlpConfig,
    TransformerConfig,
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's class (imported only when built), its settings and its kind of input."""

    module: str
    classifier: str
    config: type
    input_kind: InputKind
    libraries: tuple[str, ...]  # the distributions that train it
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
        ("xgboost",),
        "gradient-boosted trees on window statistics",
    ),
    "mlp": ModelSpec(
        "models.mlp",
        "Mlp",
        MlpConfig,
        "summary",
        ("torch",),
        "multilayer perceptron on window statistics, encoded piecewise linearly",
    ),
    "knn": ModelSpec(
        "models.knn",
        "Knn",
        KnnConfig,
        "summary",
        ("numpy",),
        "the nearest training windows by their statistics",
    ),
    "knn_semi": ModelSpec(
        "models.knn",
        "KnnSemi",
        KnnSemiConfig,
        "summary",
        ("numpy",),
        "nearest windows, a fifth of the episodes labelled, the others pseudo-labelled",
    ),
    "cnn": ModelSpec(
        "models.cnn",
        "Cnn",
        CnnConfig,
        "tensor",
        ("torch",),
        "residual convolutions on windows",
    ),
    "gru": ModelSpec(
        "models.recurrent",
        "Gru",
        GruConfig,
        "tensor",
        ("torch",),
        "bidirectional gated recurrent units on windows",
    ),
    "lstm": ModelSpec(
        "models.recurrent",
        "Lstm",
        LstmConfig,
        "tensor",
        ("torch",),
        "bidirectional long short-term memory on windows",
    ),
    "transformer": ModelSpec(
        "models.transformer",
        "Transformer",
        TransformerConfig,
        "tensor",
        ("torch",),
        "transformer encoder on windows",
    ),
    "ensemble": ModelSpec(
        "models.ensemble",
        "Ensemble",
        EnsembleConfig,
        "tensor",
        ("torch", "xgboost"),
        "transformer and gradient-boosted trees on windows, averaged",
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


def find_variant(model: str, mode: str) -> Variant:
    """The variant of these names.

    Raises:
        ValueError: it does not exist; the message names those that do.
    """
    for variant in VARIANTS:
        if (variant.model, variant.mode) == (model, mode):
            return variant
        if variant.name == model:
            raise ValueError(
                f"model must be a model's name, got the variant {model!r}; give the model "
                f"{variant.model!r} and the mode {variant.mode!r}"
            )
    if model not in MODELS:
        raise ValueError(unknown("model", model, MODELS))
    raise ValueError(unknown("mode", mode, MODES))


def model_config(model: str, values: Mapping[str, Any]) -> Any:
    """Typed hyperparameters of a model from plain values, defaults for what is not given.

    Raises:
        ValueError: a setting that does not exist, or a value that is not allowed.
    """
    config = MODELS[model].config
    try:
        return config(**values)
    except ValidationError as error:
        raise ValueError("\n".join(settings_errors(error, config, model))) from None
