"""Scaling and explicit imputation of inputs, fitted on the training set alone.

A fitted scaling is plain JSON, kept in the checkpoint's header as ``standardize``; ``scale`` reads
it. A value outside the range that training saw saturates, as it would in a tree: an unseen host
that is twice as busy must not drive a net to where nothing was ever learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from models.base import blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from models.base import Inputs

_BLOCK = 1024
_QUANTILE_WINDOWS = 100_000  # quantiles are those of so many windows, spread evenly


def fit_scaling(X: Inputs, *, block_bins: int = 1, limit: float | None = None) -> dict[str, Any]:
    """Mean and standard deviation of ``sign(x) log(1 + |x|)`` per input, over what is there.

    Rates span nine decades between an idle and a saturated guest; the logarithm keeps both
    visible. A missing value becomes 0 after scaling: the training mean.

    Args:
        block_bins: windows of a tensor are first condensed, see ``block_statistics``; 1: not.
        limit: scaled values are clipped to this many standard deviations; None: not.
    """
    steps = _steps(X, block_bins)
    n_columns = X.shape[-1] * (1 if block_bins == 1 else 2)
    count, total, squares = (np.zeros(n_columns) for _ in range(3))
    for values in steps():
        count += np.count_nonzero(~np.isnan(values), axis=0)
        total += np.nansum(values, axis=0)
    mean = total / np.maximum(count, 1)
    for values in steps():
        squares += np.nansum((values - mean) ** 2, axis=0)
    std = np.sqrt(squares / np.maximum(count, 1))
    std[std < 1e-6] = 1.0  # a constant input carries nothing, and must not be blown up
    return {
        "transform": "signed_log1p",
        "block_bins": block_bins,
        "limit": limit,
        "mean": mean.tolist(),
        "std": std.tolist(),
    }


def _steps(X: Inputs, block_bins: int) -> Callable[[], Any]:
    """A function that runs over all rows ``(n, n_columns)`` of the condensed, logarithmic X."""

    def run() -> Any:
        for block in blocks(X, _BLOCK):
            condensed = block.astype(np.float64)
            if block_bins > 1:
                condensed = block_statistics(condensed, block_bins)
            yield signed_log(condensed.reshape(-1, condensed.shape[-1]))

    return run


def fit_piecewise_linear(X: Inputs, n_pieces: int) -> dict[str, Any]:
    """Edges of ``n_pieces`` intervals per input that hold equally many training values each.

    Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS
    2022: an input becomes one column an interval, 0 below it, 1 above it, linear within it.
    """
    values = np.asarray(X[:: max(1, len(X) // _QUANTILE_WINDOWS)], dtype=np.float64)
    # what is missing or constant throughout training says nothing: it stays below its edges
    edges = np.full((X.shape[-1], n_pieces + 1), np.finfo(np.float64).max)
    for j, column in enumerate(values.T):
        there = column[~np.isnan(column)]
        if len(there) and there.min() < there.max():
            edges[j] = np.quantile(there, np.linspace(0, 1, n_pieces + 1))
    count, total = 0, np.zeros(edges.size - len(edges))
    for block in blocks(X, _BLOCK):
        pieces = _pieces(block, edges)
        count = count + np.count_nonzero(~np.isnan(pieces), axis=0)
        total += np.nansum(pieces, axis=0)
    mean = total / np.maximum(count, 1)
    return {"transform": "piecewise_linear", "edges": edges.tolist(), "mean": mean.tolist()}


_PIECE_STD = 0.4  # about what a column of a piece varies by: brings the columns to unit scale


def _pieces(X: NDArray, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n_windows, n_inputs * n_pieces)``, NaN where X is."""
    low, width = edges[:, :-1], np.diff(edges, axis=1)
    above = X[:, :, None].astype(np.float64) - low
    # an interval of no width, where many values are equal, is a step
    inside = np.divide(above, width, out=np.sign(above), where=width > 0)
    return np.clip(inside, 0.0, 1.0).reshape(len(X), -1)


def block_statistics(X: NDArray, block_bins: int) -> NDArray[np.float64]:
    """Mean and standard deviation of every ``block_bins`` timepoints, what is missing left out.

    Taken before any logarithm: a counter read ten times a second moves in steps, so the logarithm
    of its single bins says how the steps fell, not how much there was.

    Args:
        X: ``(n_windows, n_timepoints, n_channels)``; a last block that is cut off is used as is.

    Returns:
        ``(n_windows, n_blocks, 2 n_channels)``: the means, then the deviations.
    """
    n, length, channels = X.shape
    n_blocks = -(-length // block_bins)
    padded = np.full((n, n_blocks * block_bins, channels), np.nan)
    padded[:, :length] = X
    cut = padded.reshape(n, n_blocks, block_bins, channels)
    there = ~np.isnan(cut)
    count = there.sum(axis=2)
    with np.errstate(invalid="ignore"):
        mean = np.where(there, cut, 0.0).sum(axis=2) / np.where(count, count, np.nan)
        off = np.where(there, cut - mean[:, :, None], 0.0)
        std = np.sqrt((off**2).sum(axis=2) / np.where(count, count, np.nan))
    return np.concatenate([mean, std], axis=2)


def signed_log(values: NDArray) -> NDArray:
    return np.sign(values) * np.log1p(np.abs(values))


def scaled_columns(scaling: dict[str, Any]) -> int:
    """How many columns ``scale`` gives."""
    return len(scaling["mean"])


def raw_inputs(scaling: dict[str, Any]) -> int:
    """How many inputs ``scale`` takes."""
    if scaling["transform"] == "piecewise_linear":
        return len(scaling["edges"])
    return len(scaling["mean"]) // (1 if scaling["block_bins"] == 1 else 2)


def scale(block: NDArray[np.float32], scaling: dict[str, Any]) -> NDArray[np.float32]:
    """Scaled inputs without missing values.

    Args:
        block: ``(n_windows, n_features)`` or ``(n_windows, n_timepoints, n_channels)``.

    Returns:
        The same axes, the last with ``scaled_columns(scaling)``, a middle one with the blocks.
    """
    mean = np.asarray(scaling["mean"])
    if scaling["transform"] == "piecewise_linear":
        values = (_pieces(block, np.asarray(scaling["edges"])) - mean) / _PIECE_STD
    else:
        values = block.astype(np.float64)
        if scaling["block_bins"] > 1:
            values = block_statistics(values, scaling["block_bins"])
        values = (signed_log(values) - mean) / np.asarray(scaling["std"])
        if scaling["limit"] is not None:
            np.clip(values, -scaling["limit"], scaling["limit"], out=values)
    return np.nan_to_num(values, copy=False, nan=0.0).astype(np.float32)


def principal_axes(X: Inputs) -> NDArray[np.float64]:
    """First two principal axes ``(n_inputs, 2)`` of the scaled training inputs.

    Windows of a tensor enter by their means per channel. The sign is fixed so that the largest
    component of an axis is positive. Six decimals: the last bits of a matrix product depend on
    how many threads there are for it, and equal training is to give an equal header anywhere.
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
    return (axes * np.where(largest < 0, -1.0, 1.0)).round(6)
