"""Hyperparameters of every model, typed and with defaults; importing them loads no library."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from episodes.settings import SETTINGS, Count, NotNegative, Positive, PositiveShare, Share


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


@dataclass(frozen=True, slots=True, config=SETTINGS)
class GbtConfig:
    """Hyperparameters of ``Gbt``."""

    n_rounds: Count = 400
    learning_rate: Positive = 0.05
    max_depth: Count = 5
    min_child_weight: NotNegative = 2.0
    subsample: PositiveShare = 0.7
    colsample_bynode: PositiveShare = 0.3
    reg_lambda: NotNegative = 2.0
    max_bin: Count = 256
    early_stopping_rounds: Count = 40
    n_threads: Count = 2


@dataclass(frozen=True, slots=True, config=SETTINGS)
class KnnConfig:
    """Hyperparameters of ``Knn``."""

    n_neighbors: Count = 10
    n_components: Count = 32  # principal axes along which distances are taken
    max_windows: Count = 20_000  # stored; above it, as many of each class as fit
    limit: Positive = 2.0  # standard deviations


@dataclass(frozen=True, slots=True, config=SETTINGS)
class KnnSemiConfig(KnnConfig):
    """Hyperparameters of ``KnnSemi``."""

    labelled_share: PositiveShare = 0.2  # of training episodes
    confidence: PositiveShare = 0.6  # from which a pseudo-label counts


@dataclass(frozen=True, slots=True, config=SETTINGS)
class NetConfig:
    """How every neural net is trained."""

    width: Count = 64
    depth: Count = 2
    dropout: Share = 0.3
    epochs: Count = 30
    keep: Literal["best", "last"] = "best"  # weights: of the best epoch on validation, or the last
    patience: Count = 8  # epochs without a better macro F1 on validation, then training stops
    batch_size: Count = 64
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 0.05
    warmup_share: Share = 0.1
    clip_norm: Positive = 1.0
    label_smoothing: Share = 0.05
    offset_noise: NotNegative = 0.2  # of an input's standard deviation, one draw per window
    n_threads: Count = 1  # nets this small gain nothing from a second one


@dataclass(frozen=True, slots=True, config=SETTINGS)
class MlpConfig(NetConfig):
    """Hyperparameters of ``Mlp``."""

    width: Count = 192
    dropout: Share = 0.5
    epochs: Count = 60
    n_pieces: Count = 4  # intervals that an input is cut into


@dataclass(frozen=True, slots=True, config=SETTINGS)
class WindowNetConfig(NetConfig):
    """Hyperparameters that the nets on windows have in common."""

    block_bins: Count = 5  # timepoints condensed to their mean and deviation
    limit: Positive = 1.5  # standard deviations


@dataclass(frozen=True, slots=True, config=SETTINGS)
class CnnConfig(WindowNetConfig):
    """Hyperparameters of ``Cnn``."""

    kernel: Annotated[Count, AfterValidator(_odd)] = 7


@dataclass(frozen=True, slots=True, config=SETTINGS)
class GruConfig(WindowNetConfig):
    """Hyperparameters of ``Gru``."""

    depth: Count = 1


@dataclass(frozen=True, slots=True, config=SETTINGS)
class LstmConfig(WindowNetConfig):
    """Hyperparameters of ``Lstm``."""

    width: Count = 96
    depth: Count = 1


@dataclass(frozen=True, slots=True, config=SETTINGS)
class TransformerConfig(WindowNetConfig):
    """Hyperparameters of ``Transformer``."""

    dropout: Share = 0.2
    n_heads: Count = 4

    def __post_init__(self) -> None:
        if self.width % (2 * self.n_heads):
            raise ValueError(
                f"width must be a multiple of twice n_heads ({2 * self.n_heads}), got {self.width}"
            )
