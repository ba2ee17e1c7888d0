"""Hyper-parameters of every model, typed and with defaults; importing them loads no library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_MAY_BE_ZERO = frozenset(
    {"weight_decay", "warmup_share", "label_smoothing", "offset_noise", "dropout"}
    | {"min_child_weight", "reg_lambda", "patience"}
)
_AT_MOST_ONE = frozenset(
    {"subsample", "colsample_bynode", "warmup_share", "label_smoothing", "dropout"}
)


def check_ranges(config: Any) -> None:
    """Every number is finite and positive (some may be 0), and a share is at most 1.

    Raises:
        ValueError: names the hyper-parameter and its range.
    """
    for name in config.__slots__:
        value = getattr(config, name)
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
class CnnConfig:
    """Hyper-parameters of ``Cnn``."""

    width: int = 32
    depth: int = 3
    dropout: float = 0.3
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    patience: int = 10
    label_smoothing: float = 0.05
    offset_noise: float = 0.2  # of a channel's standard deviation, one draw a window and channel
    n_threads: int = 1  # small convolutions gain nothing from a second one

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width < 4:
            raise ValueError(f"CnnConfig: width is {self.width}; it is at least 4, one a branch")
