"""Scaling and explicit imputation of inputs, fitted on the training set alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from models.base import blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.base import Inputs

_BLOCK = 4096


def fit_scaling(X: Inputs) -> dict[str, Any]:
    """Mean and standard deviation of ``sign(x) log(1 + |x|)`` per input, over what is there.

    Rates span nine decades between an idle and a saturated guest; the logarithm keeps both
    visible. A missing value becomes 0 after scaling: the training mean.
    """
    n_inputs = X.shape[-1]
    count, total, squares = (np.zeros(n_inputs) for _ in range(3))
    for block in blocks(X, _BLOCK):
        values = signed_log(block.reshape(-1, n_inputs).astype(np.float64))
        count += np.count_nonzero(~np.isnan(values), axis=0)
        total += np.nansum(values, axis=0)
    mean = total / np.maximum(count, 1)
    for block in blocks(X, _BLOCK):
        values = signed_log(block.reshape(-1, n_inputs).astype(np.float64))
        squares += np.nansum((values - mean) ** 2, axis=0)
    std = np.sqrt(squares / np.maximum(count, 1))
    std[std < 1e-6] = 1.0  # a constant input carries nothing, and must not be blown up
    return {"transform": "signed_log1p", "mean": mean.tolist(), "std": std.tolist()}


def signed_log(values: NDArray) -> NDArray:
    return np.sign(values) * np.log1p(np.abs(values))


def scale(block: NDArray[np.float32], scaling: dict[str, Any]) -> NDArray[np.float32]:
    """Scaled inputs without missing values, of the same shape."""
    mean = np.asarray(scaling["mean"], dtype=np.float32)
    std = np.asarray(scaling["std"], dtype=np.float32)
    return np.nan_to_num((signed_log(block) - mean) / std, copy=False, nan=0.0)


def principal_axes(X: Inputs) -> NDArray[np.float64]:
    """First two principal axes ``(n_inputs, 2)`` of the scaled training inputs.

    Windows of a tensor enter by their means per channel. The sign is fixed so that the largest
    component of an axis is positive.
    """
    scaling = fit_scaling(X)
    n_inputs = X.shape[-1]
    gram, total, n = np.zeros((n_inputs, n_inputs)), np.zeros(n_inputs), 0
    for block in blocks(X, _BLOCK):
        rows = scale(block, scaling).astype(np.float64)
        if rows.ndim == 3:
            rows = rows.mean(axis=1)
        gram += rows.T @ rows
        total += rows.sum(axis=0)
        n += len(rows)
    mean = total / max(n, 1)
    _, vectors = np.linalg.eigh(gram / max(n, 1) - np.outer(mean, mean))
    axes = vectors[:, ::-1][:, :2]
    if axes.shape[1] < 2:
        axes = np.hstack([axes, np.zeros((n_inputs, 2 - axes.shape[1]))])
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(2)]
    return axes * np.where(largest < 0, -1.0, 1.0)
