"""Hyperparameters of every model, typed and with defaults; importing them loads no library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from episodes.format import PHASES
from episodes.settings import SETTINGS, Count, NotNegative, Positive, PositiveShare, Share
from models import MAX_POINTS, MAX_TREE_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A setting comes from a file, perhaps a stranger's checkpoint. The upper bounds are far beyond what
# helps, and keep it from taking all memory or time.
Steps = Annotated[Count, Field(le=10_000)]
Threads = Annotated[Count, Field(le=256)]
Layers = Annotated[Count, Field(le=32)]
Width = Annotated[Count, Field(le=2_048)]
Small = Annotated[Count, Field(le=256)]
Rate = Annotated[Positive, Field(le=10)]
Strength = Annotated[NotNegative, Field(le=1e6)]
Most = Annotated[Positive, Field(le=1e6)]


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its name; one of a member is called ``trees.max_depth``."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


@dataclass(frozen=True, slots=True, config=SETTINGS)
class GbtConfig:
    """Hyperparameters of ``Gbt``."""

    n_rounds: Steps = 400
    learning_rate: Rate = 0.05
    max_depth: Annotated[Count, Field(le=MAX_TREE_DEPTH)] = 5
    min_child_weight: Strength = 2.0
    subsample: PositiveShare = 0.7
    colsample_bynode: PositiveShare = 0.3
    reg_lambda: Strength = 2.0
    max_bin: Annotated[Count, Field(ge=2, le=65_536)] = 256
    early_stopping_rounds: Steps = 40
    n_threads: Threads = 2


@dataclass(frozen=True, slots=True, config=SETTINGS)
class KnnConfig:
    """Hyperparameters of ``Knn``."""

    n_neighbors: Steps = 10
    n_components: Steps = 32  # principal axes along which distances are taken
    max_windows: Annotated[Count, Field(ge=len(PHASES), le=MAX_POINTS)] = (
        20_000  # stored; above it, as many of each class as fit
    )
    limit: Most = 2.0  # standard deviations


@dataclass(frozen=True, slots=True, config=SETTINGS)
class KnnSemiConfig(KnnConfig):
    """Hyperparameters of ``KnnSemi``."""

    labelled_share: PositiveShare = 0.2  # of training episodes
    confidence: PositiveShare = 0.6  # from which a pseudo-label counts


@dataclass(frozen=True, slots=True, config=SETTINGS)
class NetConfig:
    """How every neural net is trained."""

    width: Width = 64
    depth: Layers = 2
    dropout: Share = 0.3
    epochs: Steps = 30
    keep: Literal["best", "last"] = "best"  # weights: of the best epoch on validation, or the last
    patience: Steps = 8  # epochs without a better macro F1 on validation, then training stops
    batch_size: Annotated[Count, Field(ge=4, le=65_536)] = 64  # one window alone has no deviation
    learning_rate: Rate = 2e-3
    weight_decay: Strength = 0.05
    warmup_share: Share = 0.1
    clip_norm: Most = 1.0
    label_smoothing: Share = 0.05
    offset_noise: Strength = 0.2  # of an input's standard deviation, one draw per window
    n_threads: Threads = 1  # nets this small gain nothing from a second one


@dataclass(frozen=True, slots=True, config=SETTINGS)
class MlpConfig(NetConfig):
    """Hyperparameters of ``Mlp``."""

    width: Width = 192
    dropout: Share = 0.5
    epochs: Steps = 60
    n_pieces: Annotated[Count, Field(le=32)] = 4  # intervals of an input; a header holds about 70


@dataclass(frozen=True, slots=True, config=SETTINGS)
class WindowNetConfig(NetConfig):
    """Hyperparameters that the nets on windows have in common."""

    block_bins: Small = 5  # timepoints condensed to their mean and deviation
    limit: Most = 1.5  # standard deviations


@dataclass(frozen=True, slots=True, config=SETTINGS)
class CnnConfig(WindowNetConfig):
    """Hyperparameters of ``Cnn``."""

    kernel: Annotated[Small, AfterValidator(_odd)] = 7


@dataclass(frozen=True, slots=True, config=SETTINGS)
class GruConfig(WindowNetConfig):
    """Hyperparameters of ``Gru``."""

    depth: Layers = 1


@dataclass(frozen=True, slots=True, config=SETTINGS)
class LstmConfig(WindowNetConfig):
    """Hyperparameters of ``Lstm``."""

    width: Width = 96
    depth: Layers = 1
    offset_noise: Strength = 0.3


@dataclass(frozen=True, slots=True, config=SETTINGS)
class TransformerConfig(WindowNetConfig):
    """Hyperparameters of ``Transformer``."""

    dropout: Share = 0.2
    n_heads: Small = 4

    def __post_init__(self) -> None:
        if self.width % (2 * self.n_heads):
            raise ValueError(
                f"width must be a multiple of twice n_heads ({2 * self.n_heads}), got {self.width}"
            )


@dataclass(frozen=True, slots=True, config=SETTINGS)
class EnsembleConfig(TransformerConfig):
    """Hyperparameters of ``Ensemble``: those of its transformer, and of its trees."""

    trees: GbtConfig = GbtConfig()
