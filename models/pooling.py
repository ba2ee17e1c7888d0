"""Windows as rows for trees, and the mean of several models' probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.scaling import block_statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

POOLED = 3  # numbers per column of a step
_LEAST = 1e-6  # probability that a logarithm is taken of at least


def pooled(X: NDArray[np.float32], block_bins: int) -> NDArray[np.float32]:
    """What every step's mean and deviation were over a window: mean, deviation and largest.

    No logarithm is taken: trees need none, and processors differ in its last bit, which may choose
    another leaf.

    Args:
        X: ``(n_windows, n_timepoints, n_inputs)``, NaN = missing.
        block_bins: timepoints in a step.

    Returns:
        ``(n_windows, 2 * POOLED * n_inputs)``, over the steps that have a value; NaN if none has.
    """
    steps = block_statistics(X, block_bins)
    present = ~np.isnan(steps)
    count = present.sum(axis=1)
    some = np.where(count, count, np.nan)
    mean = np.where(present, steps, 0.0).sum(axis=1) / some
    off = np.where(present, steps - mean[:, None], 0.0)
    deviation = np.sqrt((off**2).sum(axis=1) / some)
    largest = np.fmax.reduce(steps, axis=1)
    return np.concatenate([mean, deviation, largest], axis=1).astype(np.float32)


def geometric_mean(probas: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Normalised geometric mean of probabilities ``(n_windows, n_classes)`` each."""
    logs = np.mean([np.log(np.maximum(proba, _LEAST)) for proba in probas], axis=0)
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
