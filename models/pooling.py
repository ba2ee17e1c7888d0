"""Windows as rows for trees, and the mean of several models' probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.scaling import block_statistics
from models.trees import softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

POOLED = 6  # numbers per input
_CHUNK = 32  # windows whose steps fit into the cache of a processor
_LEAST = 1e-6  # probability that a logarithm is taken of at least


def pooled(X: NDArray[np.float32], block_bins: int) -> NDArray[np.float32]:
    """What every step's mean and deviation were over a window: mean, deviation and largest.

    Trees need no logarithm, so none is taken here: equal inputs give equal rows on any processor.

    Args:
        X: ``(n_windows, n_timepoints, n_inputs)``, NaN = missing.
        block_bins: timepoints in a step.

    Returns:
        ``(n_windows, POOLED * n_inputs)``, over the steps that have a value; NaN if none has.
        Number ``k`` of input ``i`` is column ``k * n_inputs + i``.
    """
    rows = np.empty((len(X), POOLED * X.shape[2]), dtype=np.float32)
    for start in range(0, len(X), _CHUNK):
        steps = block_statistics(X[start : start + _CHUNK], block_bins)
        present = ~np.isnan(steps)
        count = present.sum(axis=1)
        some = np.where(count, count, np.nan)
        with np.errstate(invalid="ignore"):  # of infinite values
            mean = np.where(present, steps, 0.0).sum(axis=1) / some
            off = np.where(present, steps - mean[:, None], 0.0)
            deviation = np.sqrt((off**2).sum(axis=1) / some)
        largest = np.fmax.reduce(steps, axis=1)
        rows[start : start + _CHUNK] = np.concatenate([mean, deviation, largest], axis=1)
    return rows


def check_typical(typical: NDArray[np.float32], n_inputs: int) -> NDArray[np.float32]:
    """Typical pooled values of a file, if they are numbers for so many inputs.

    Raises:
        ValueError: they are not.
    """
    if typical.shape != (POOLED * n_inputs,) or not np.all(np.isfinite(typical)):
        raise ValueError(f"typical must be {POOLED * n_inputs} numbers")
    return typical


def geometric_mean(probas: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Normalised geometric mean of probabilities ``(n_windows, n_classes)`` each."""
    return softmax(np.mean([np.log(np.maximum(proba, _LEAST)) for proba in probas], axis=0))
