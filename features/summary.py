"""Summary inputs: per window and channel the statistics of ``registry.STATS``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from episodes.jit import COMPILES, jit
from features.registry import STATS, Layout

_QUANTILE = 0.95


def summarise(
    series: NDArray[np.float32], starts: NDArray[np.int64], layout: Layout
) -> NDArray[np.float32]:
    """Features ``(n_windows, n_channels * n_stats)``, channel-major, NaN = missing.

    ``mean``; ``std`` (population); ``p95`` (linear interpolation); ``slope`` (least squares, per
    second); ``zero_frac`` (share of bins equal to 0): each over the bins that have a value, and
    missing if fewer than ``window.min_bins`` have one. Accumulated in float64.
    """
    window = layout.window
    out = np.empty((len(starts), series.shape[1], len(STATS)), dtype=np.float32)
    columns: Any = np.ascontiguousarray(series.T, dtype=np.float64)
    scratch: Any = [np.empty(window.n_bins) for _ in range(3)]
    if not COMPILES:  # plain Python reads lists faster than arrays
        columns, scratch = columns.tolist(), [[0.0] * window.n_bins for _ in scratch]
    _summarise(
        columns, starts, window.n_bins, window.min_bins, window.bin_ms / 1000.0, *scratch, out
    )
    wanted = [STATS.index(stat) for stat in layout.stats]
    return out[:, :, wanted].reshape(len(starts), series.shape[1] * len(wanted))


# Long, because an array passed to another kernel is counted, which costs (``jit``).
@jit
def _summarise(columns, starts, n_bins, min_bins, bin_s, values, at, top, out):
    for c in range(len(columns)):
        column = columns[c]
        for w in range(len(starts)):
            n = 0
            total = 0.0
            total_at = 0.0
            zeros = 0
            for j in range(n_bins):
                value = column[starts[w] + j]
                if value == value:  # not NaN
                    values[n] = value
                    at[n] = j * bin_s
                    total += value
                    total_at += j * bin_s
                    zeros += value == 0.0
                    n += 1
            if n < min_bins or n == 0:
                out[w, c, :] = np.nan
                continue
            mean = total / n
            mean_at = total_at / n
            squares = 0.0
            squares_at = 0.0
            products = 0.0
            # The quantile needs only the few largest values: keep them sorted by insertion.
            position = _QUANTILE * (n - 1)
            low = int(position)
            keep = n - low
            kept = 0
            for i in range(n):
                value = values[i]
                centred = value - mean
                squares += centred * centred
                squares_at += (at[i] - mean_at) ** 2
                products += centred * (at[i] - mean_at)
                if kept == keep and value <= top[0]:
                    continue
                if kept < keep:
                    slot = kept
                    kept += 1
                    while slot > 0 and top[slot - 1] > value:
                        top[slot] = top[slot - 1]
                        slot -= 1
                else:
                    slot = 0
                    while slot + 1 < keep and top[slot + 1] < value:
                        top[slot] = top[slot + 1]
                        slot += 1
                top[slot] = value
            quantile = top[0]
            if keep > 1:
                quantile += (top[1] - top[0]) * (position - low)
            out[w, c, 0] = mean
            out[w, c, 1] = np.sqrt(squares / n)
            out[w, c, 2] = quantile
            out[w, c, 3] = products / squares_at if squares_at > 0.0 else np.nan
            out[w, c, 4] = zeros / n
