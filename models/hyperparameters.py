"""Hyper-parameters of every model, typed and with defaults; importing them loads no library."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

_MAY_BE_ZERO = frozenset(
    {"weight_decay", "warmup_share", "label_smoothing", "offset_noise", "dropout"}
    | {"min_child_weight", "reg_lambda"}
)
_AT_MOST_ONE = frozenset(
    {"subsample", "colsample_bynode", "warmup_share", "label_smoothing", "dropout"}
    | {"labelled_share", "confidence"}
)


def check_ranges(config: Any) -> None:
    """Every number is finite and positive (some may be 0), and a share is at most 1.

    Raises:
        ValueError: names the hyper-parameter and its range.
    """
    for name, value in asdict(config).items():
        low_enough = name not in _AT_MOST_ONE or value <= 1
        high_enough = value > 0 or (value == 0 and name in _MAY_BE_ZERO)
        if not (math.isfinite(value) and low_enough and high_enough):
            span = "0 or more" if name in _MAY_BE_ZERO else "over 0"
            limit = ", at most 1" if name in _AT_MOST_ONE else ""
            raise ValueError(f"{type(config).__name__}: {name} is {value}; it is {span}{limit}")


@dataclass(frozen=True, slots=True)
class GbtConfig:
    """Hyper-parameters of ``Gbt``."""

    n_rounds: int = 400
    learning_rate: float = 0.05
    max_depth: int = 5
    min_child_weight: float = 2.0
    subsample: float = 0.7
    colsample_bynode: float = 0.3
    reg_lambda: float = 2.0
    max_bin: int = 256
    early_stopping_rounds: int = 40
    n_threads: int = 2

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class KnnConfig:
    """Hyper-parameters of ``Knn``."""

    n_neighbors: int = 10
    n_components: int = 32  # principal axes that distances are taken along
    max_windows: int = 20_000  # stored; beyond that, as many of each class as fit
    limit: float = 2.0  # standard deviations

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class KnnSemiConfig(KnnConfig):
    """Hyper-parameters of ``KnnSemi``."""

    labelled_share: float = 0.2  # of training episodes
    confidence: float = 0.6  # from which a pseudo-label counts


@dataclass(frozen=True, slots=True)
class NetConfig:
    """How every neural net is trained."""

    width: int = 64
    depth: int = 2
    dropout: float = 0.3
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    label_smoothing: float = 0.05
    offset_noise: float = 0.2  # of an input's standard deviation, one draw a window and input
    n_threads: int = 1  # nets this small gain nothing from a second one

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class MlpConfig(NetConfig):
    """Hyper-parameters of ``Mlp``."""

    width: int = 192
    dropout: float = 0.5
    epochs: int = 60
    n_pieces: int = 4  # intervals that an input is cut into


@dataclass(frozen=True, slots=True)
class WindowNetConfig(NetConfig):
    """Hyper-parameters that the nets on windows have in common."""

    block_bins: int = 5  # timepoints condensed to their mean and deviation
    limit: float = 1.5  # standard deviations


@dataclass(frozen=True, slots=True)
class CnnConfig(WindowNetConfig):
    """Hyper-parameters of ``Cnn``."""

    kernel: int = 7

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.kernel % 2 == 0:
            raise ValueError(f"CnnConfig: kernel is {self.kernel}; it is odd")


@dataclass(frozen=True, slots=True)
class GruConfig(WindowNetConfig):
    """Hyper-parameters of ``Gru``."""

    depth: int = 1


@dataclass(frozen=True, slots=True)
class LstmConfig(WindowNetConfig):
    """Hyper-parameters of ``Lstm``."""

    width: int = 96
    depth: int = 1


@dataclass(frozen=True, slots=True)
class TransformerConfig(WindowNetConfig):
    """Hyper-parameters of ``Transformer``."""

    dropout: float = 0.2
    n_heads: int = 4

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width % (2 * self.n_heads):
            raise ValueError(
                f"TransformerConfig: width is {self.width}; it is a multiple of twice the heads "
                f"({self.n_heads})"
            )
