"""Hyper-parameters of every model, typed and with defaults; importing them loads no library."""

from __future__ import annotations

from dataclasses import dataclass


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
