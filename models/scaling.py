"""Scaling and explicit imputation of inputs, fitted on the training set alone.

A fitted scaling is plain JSON, kept in the checkpoint's header as ``standardize``; ``scale`` reads
it. Values outside the range of training saturate, as in a tree: an unseen host that is twice as
busy must not take a net to inputs it was never trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from episodes.jit import COMPILES, jit
from models.base import blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from models.base import Inputs

_BLOCK = 1024
_LEAST_STD = 1e-6
MAX_BLOCK_BINS = 256
_CHUNK = 32  # windows whose bins fit into the cache of a processor
_QUANTILE_WINDOWS = 100_000  # windows that quantiles are taken from, spread evenly


def fit_scaling(X: Inputs, *, block_bins: int = 1, limit: float | None = None) -> dict[str, Any]:
    """Mean and standard deviation of ``sign(x) log(1 + |x|)`` per input, over values present.

    Rates span nine decades between an idle and a saturated guest; the logarithm keeps both
    visible. A missing value becomes 0 after scaling: the training mean.

    Args:
        block_bins: windows of a tensor are first condensed, see ``block_statistics``; 1: off.
        limit: scaled values are clipped to this many standard deviations; None: off.
    """

    def steps() -> Iterator[NDArray[np.float64]]:
        for block in blocks(X, _BLOCK):
            chunks = (block[i : i + _CHUNK] for i in range(0, len(block), _CHUNK))
            yield np.concatenate([logarithms(chunk) for chunk in chunks])

    def logarithms(values: NDArray[np.float32]) -> NDArray[np.float64]:
        condensed = _condensed(values, block_bins)
        return _signed_log(condensed.reshape(-1, condensed.shape[-1]))

    n_columns = X.shape[-1] * (1 if block_bins == 1 else 2)
    count, total, squares = (np.zeros(n_columns) for _ in range(3))
    for values in steps():
        _add(values, count, total)
    mean = total / np.maximum(count, 1)
    for values in steps():
        values -= mean
        np.multiply(values, values, out=values)
        _add(values, np.zeros(n_columns), squares)
    std = np.sqrt(squares / np.maximum(count, 1))
    std[std < _LEAST_STD] = 1.0  # a constant input has no information; do not amplify noise
    return {
        "transform": "signed_log1p",
        "block_bins": block_bins,
        "limit": limit,
        "mean": mean.tolist(),
        "std": std.tolist(),
    }


def _condensed(block: NDArray[np.float32], block_bins: int) -> NDArray[np.float64]:
    return block_statistics(block, block_bins) if block_bins > 1 else block.astype(np.float64)


def _signed_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``features.relative.signed_log`` with one array less."""
    sizes = np.abs(values)
    np.log1p(sizes, out=sizes)
    return np.copysign(sizes, values, out=sizes)


def _add(values: NDArray[np.float64], count: NDArray, total: NDArray) -> None:
    """Add how many values of each column are present, and their sum, row after row."""
    present = ~np.isnan(values)
    count += np.count_nonzero(present, axis=0)
    total += np.where(present, values, 0.0).sum(axis=0)


def fit_piecewise_linear(X: Inputs, n_pieces: int) -> dict[str, Any]:
    """Edges of ``n_pieces`` intervals per input that hold equally many training values each.

    Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS
    2022: an input becomes one column per interval, 0 below it, 1 above it, linear within it.
    """
    values = np.asarray(X[:: max(1, len(X) // _QUANTILE_WINDOWS)], dtype=np.float64)
    # an input that is missing or constant throughout training stays below its edges
    edges = np.full((X.shape[-1], n_pieces + 1), np.finfo(np.float64).max)
    for j, column in enumerate(values.T):
        present = column[~np.isnan(column)]
        if len(present) and present.min() < present.max():
            edges[j] = np.quantile(present, np.linspace(0, 1, n_pieces + 1))
    count, total = 0, np.zeros(edges.size - len(edges))
    for block in blocks(X, _BLOCK):
        pieces = _pieces(block, edges)
        count = count + np.count_nonzero(~np.isnan(pieces), axis=0)
        total += np.nansum(pieces, axis=0)
    mean = total / np.maximum(count, 1)
    return {"transform": "piecewise_linear", "edges": edges.tolist(), "mean": mean.tolist()}


_PIECE_STD = 0.4  # about the deviation of a piece's column: brings columns to unit scale


def _pieces(X: NDArray, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n_windows, n_inputs * n_pieces)``, NaN where X is."""
    low, width = edges[:, :-1], np.diff(edges, axis=1)
    above = X[:, :, None].astype(np.float64) - low
    # an interval of width 0, where many values are equal, is a step
    inside = np.divide(above, width, out=np.sign(above), where=width > 0)
    return np.clip(inside, 0.0, 1.0).reshape(len(X), -1)


def block_statistics(X: NDArray, block_bins: int) -> NDArray[np.float64]:
    """Mean and standard deviation of every ``block_bins`` timepoints, missing values left out.

    Taken before any logarithm: a counter read ten times per second moves in steps, so the logarithm
    of single bins would measure how the steps fell, not their size.

    Args:
        X: ``(n_windows, n_timepoints, n_channels)``; a last block that is cut off is used as is.

    Returns:
        ``(n_windows, n_blocks, 2 n_channels)``: the means, then the deviations.
    """
    n, length, channels = X.shape
    n_blocks = -(-length // block_bins)
    if COMPILES:
        out = np.empty((n, n_blocks, 2 * channels))
        _block_statistics(np.ascontiguousarray(X), block_bins, out)
        return out
    padded = np.full((n, n_blocks * block_bins, channels), np.nan)
    padded[:, :length] = X
    cut = padded.reshape(n, n_blocks, block_bins, channels)
    present = ~np.isnan(cut)
    count = present.sum(axis=2)
    with np.errstate(invalid="ignore"):
        mean = np.where(present, cut, 0.0).sum(axis=2) / np.where(count, count, np.nan)
        off = np.where(present, cut - mean[:, :, None], 0.0)
        std = np.sqrt((off**2).sum(axis=2) / np.where(count, count, np.nan))
    return np.concatenate([mean, std], axis=2)


@jit
def _block_statistics(X, block_bins, out):
    """The same sums in the same order as NumPy's, without its passes over memory."""
    n, length, channels = X.shape
    total, count, mean = np.empty(channels), np.empty(channels), np.empty(channels)
    for i in range(n):
        for block in range(out.shape[1]):
            begin = block * block_bins
            end = min(begin + block_bins, length)
            total[:] = 0.0
            count[:] = 0.0
            for t in range(begin, end):
                for c in range(channels):
                    value = np.float64(X[i, t, c])
                    there = value == value
                    total[c] += value if there else 0.0
                    count[c] += 1.0 if there else 0.0
            for c in range(channels):
                mean[c] = total[c] / count[c] if count[c] else np.nan
            total[:] = 0.0
            for t in range(begin, end):
                for c in range(channels):
                    value = np.float64(X[i, t, c])
                    off = value - mean[c]
                    total[c] += off * off if value == value else 0.0
            for c in range(channels):
                out[i, block, c] = mean[c]
                squares = total[c] / count[c] if count[c] else np.nan
                out[i, block, channels + c] = np.sqrt(squares)


_KEYS = {
    "signed_log1p": {"transform", "block_bins", "limit", "mean", "std"},
    "piecewise_linear": {"transform", "edges", "mean"},
}


def check_scaling(scaling: Any, n_inputs: int) -> dict[str, Any]:
    """A scaling from a file, if it is one that fitting could have given for so many inputs.

    Raises:
        ValueError: says which constant is wrong.
    """
    transform = scaling.get("transform") if isinstance(scaling, dict) else None
    if transform not in _KEYS or scaling.keys() != _KEYS[transform]:
        raise ValueError(f"standardize must be one of {', '.join(_KEYS)}, with its constants")
    if transform == "piecewise_linear":
        edges = _finite(scaling["edges"], "edges")
        if edges.ndim != 2 or len(edges) != n_inputs or edges.shape[1] < 2:
            raise ValueError(f"standardize: edges must be for {n_inputs} inputs")
        if np.any(np.diff(edges, axis=1) < 0):
            raise ValueError("standardize: edges must not fall")
        n_columns = edges.size - len(edges)
    else:
        block_bins, limit = scaling["block_bins"], scaling["limit"]
        if type(block_bins) is not int or not 1 <= block_bins <= MAX_BLOCK_BINS:
            raise ValueError(
                f"standardize: block_bins must be 1 to {MAX_BLOCK_BINS}, got {block_bins!r}"
            )
        if limit is not None and not (type(limit) in (int, float) and 0 < limit < np.inf):
            raise ValueError(f"standardize: limit must be a number above 0, got {limit!r}")
        n_columns = n_inputs * (1 if block_bins == 1 else 2)
        std = _finite(scaling["std"], "std")
        if std.shape != (n_columns,) or np.any(std < _LEAST_STD):
            raise ValueError(
                f"standardize: std must be {n_columns} numbers of at least {_LEAST_STD:g}"
            )
    if _finite(scaling["mean"], "mean").shape != (n_columns,):
        raise ValueError(f"standardize: mean must be {n_columns} numbers")
    return scaling


def _finite(values: Any, name: str) -> NDArray[np.float64]:
    array = np.array(values)
    if array.dtype.kind not in "iuf" or not np.all(np.isfinite(array)):
        raise ValueError(f"standardize: {name} must be finite numbers")
    return array


def scaled_columns(scaling: dict[str, Any]) -> int:
    """How many columns ``scale`` gives."""
    return len(scaling["mean"])


def raw_inputs(scaling: dict[str, Any]) -> int:
    """How many inputs ``scale`` takes."""
    if scaling["transform"] == "piecewise_linear":
        return len(scaling["edges"])
    return len(scaling["mean"]) // (1 if scaling["block_bins"] == 1 else 2)


def typical(scaling: dict[str, Any]) -> NDArray[np.float32]:
    """Inputs ``(n_inputs,)`` that are typical of training: the median where the scaling has it.

    Otherwise NaN: a missing value is scaled to the training mean.
    """
    out = np.full(raw_inputs(scaling), np.nan, dtype=np.float32)
    if scaling["transform"] == "piecewise_linear":
        edges = np.asarray(scaling["edges"])
        n = edges.shape[1]
        known = edges[:, 0] < np.finfo(np.float32).max  # not missing or constant in training
        out[known] = 0.5 * (edges[known, (n - 1) // 2] + edges[known, n // 2])
    return out


def scale(block: NDArray[np.float32], scaling: dict[str, Any]) -> NDArray[np.float32]:
    """Scaled inputs without missing values.

    Args:
        block: ``(n_windows, n_inputs)`` or ``(n_windows, n_timepoints, n_inputs)``.

    Returns:
        The same axes, the last with ``scaled_columns(scaling)``, a middle one with the blocks.
    """
    chunks = (block[i : i + _CHUNK] for i in range(0, max(1, len(block)), _CHUNK))
    return np.concatenate([_scaled(chunk, scaling) for chunk in chunks])


def _scaled(block: NDArray[np.float32], scaling: dict[str, Any]) -> NDArray[np.float32]:
    mean = np.asarray(scaling["mean"])
    if scaling["transform"] == "piecewise_linear":
        values = (_pieces(block, np.asarray(scaling["edges"])) - mean) / _PIECE_STD
    else:
        values = _signed_log(_condensed(block, scaling["block_bins"]))
        values -= mean
        values /= np.asarray(scaling["std"])
        if scaling["limit"] is not None:
            np.clip(values, -scaling["limit"], scaling["limit"], out=values)
    values[np.isnan(values)] = 0.0
    return values.astype(np.float32)


def principal_axes(X: Inputs) -> NDArray[np.float64]:
    """First two principal axes ``(n_inputs, 2)`` of the scaled training inputs.

    Windows of a tensor enter by their means per channel. Six decimals: the last bits of a matrix
    product depend on the number of threads, and equal training must give an equal header.
    """
    scaling = fit_scaling(X)
    scaled = (scale(block, scaling).astype(np.float64) for block in blocks(X, _BLOCK))
    axes = leading_axes((rows.mean(axis=1) if rows.ndim == 3 else rows for rows in scaled), 2)
    return np.pad(axes, ((0, 0), (0, 2 - axes.shape[1]))).round(6)


def leading_axes(blocks_of_rows: Iterable[NDArray[np.float64]], n_axes: int) -> NDArray[np.float64]:
    """Principal axes ``(n_inputs, n_axes)`` of rows ``(n, n_inputs)``, or as many as inputs.

    The sign makes the largest component of each axis positive.
    """
    gram: Any = 0.0
    total: Any = 0.0
    n = 0
    for rows in blocks_of_rows:
        gram = gram + rows.T @ rows
        total = total + rows.sum(axis=0)
        n += len(rows)
    mean = total / n
    _, vectors = np.linalg.eigh(gram / n - np.outer(mean, mean))
    axes = vectors[:, ::-1][:, :n_axes]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return axes * np.where(largest < 0, -1.0, 1.0)
