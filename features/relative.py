"""Inputs relative to the machine's own past.

Between machines and days it is mostly levels that move: free memory, idle load, system time. So a
value is also given as its distance, on a logarithmic scale, from the running median of the same
quantity over the last ``window.horizon_windows`` windows. The current window is the last of them:
nothing looks ahead, and later rows change nothing earlier. Memory is bounded by the horizon.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from episodes.jit import jit
from features.registry import InputKind, Layout
from features.summary import summarise
from features.windows import window_starts, window_views


def signed_log(values: NDArray) -> NDArray:
    """``sign(x) log(1 + |x|)``: rates span nine decades between an idle and a saturated guest."""
    return np.sign(values) * np.log1p(np.abs(values))


def running_median(values: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
    """Median of ``signed_log(values)`` over each row and the ``horizon - 1`` rows before it.

    Args:
        values: ``(n_windows, n_columns)``, consecutive windows of one machine, NaN = missing.

    Returns:
        ``(n_windows, n_columns)``; missing values are left out, NaN where there is no other.
    """
    out = np.empty(values.shape, dtype=np.float32)
    logs = np.ascontiguousarray(signed_log(values.astype(np.float64)))
    _running_median(logs, min(horizon, max(1, len(values))), out)
    return out


@jit
def _running_median(logs, horizon, out):
    n_rows, n_columns = logs.shape
    ordered = np.empty(horizon)
    for c in range(n_columns):
        n = 0
        for row in range(n_rows):
            if row >= horizon:
                leaving = logs[row - horizon, c]
                if not np.isnan(leaving):
                    slot = np.searchsorted(ordered[:n], leaving)
                    for i in range(slot, n - 1):
                        ordered[i] = ordered[i + 1]
                    n -= 1
            value = logs[row, c]
            if not np.isnan(value):
                slot = n
                while slot > 0 and ordered[slot - 1] > value:
                    ordered[slot] = ordered[slot - 1]
                    slot -= 1
                ordered[slot] = value
                n += 1
            if n == 0:
                out[row, c] = np.nan
            else:
                out[row, c] = 0.5 * (ordered[(n - 1) // 2] + ordered[n // 2])


class RunningMedian:
    """``running_median`` of one machine while its windows arrive, equal to the last bit."""

    def __init__(self, horizon: int):
        self.rows: deque[NDArray[np.float32]] = deque(maxlen=horizon)

    def push(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next window's values ``(n_columns,)``; returns their median so far."""
        self.rows.append(row)
        logs = np.sort(signed_log(np.stack(self.rows).astype(np.float64)), axis=0)  # NaN last
        n = np.count_nonzero(~np.isnan(logs), axis=0)
        column = np.arange(logs.shape[1])
        middle = (
            logs[np.maximum(n - 1, 0) // 2, column]
            + logs[np.minimum(n // 2, len(logs) - 1), column]
        )
        return np.where(n > 0, 0.5 * middle, np.nan).astype(np.float32)


def baselines(
    series: NDArray[np.float32],
    features: NDArray[np.float32],
    starts: NDArray[np.int64],
    layout: Layout,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The running medians of the features and of the mean of every channel.

    Args:
        series: ``(n_bins, n_channels)``.
        features: ``(n_windows, n_features)`` of the series.
        starts: ``(n_windows,)``, first bin of each window.

    Returns:
        ``(n_windows, n_features)`` and ``(n_windows, n_channels)``.
    """
    horizon, n_stats = layout.window.horizon_windows, len(layout.stats)
    baseline = running_median(features, horizon)
    if "mean" in layout.stats:
        return baseline, np.ascontiguousarray(baseline[:, layout.stats.index("mean") :: n_stats])
    means = summarise(series, starts, replace(layout, stats=("mean",)))
    return baseline, running_median(means, horizon)


def summary_inputs(
    features: NDArray[np.float32], baseline: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``(n_windows, 2 n_features)``: the features, then relative to their baseline."""
    return np.concatenate([features, _relative(features, baseline)], axis=-1)


def tensor_inputs(
    windows: NDArray[np.float32], baseline: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``(n_windows, n_timepoints, 2 n_channels)``: the series, then relative to the baseline.

    Args:
        windows: ``(n_windows, n_timepoints, n_channels)``.
        baseline: ``(n_windows, n_channels)``, of the windows' means.
    """
    return np.concatenate([windows, _relative(windows, baseline[:, None])], axis=-1)


def _relative(values: NDArray[np.float32], baseline: NDArray[np.float32]) -> NDArray[np.float32]:
    return signed_log(values.astype(np.float64)).astype(np.float32) - baseline


def episode_inputs(
    input_kind: InputKind,
    series: NDArray[np.float32],
    features: NDArray[np.float32],
    layout: Layout,
) -> NDArray[np.float32]:
    """Every input of ``layout.input_names(input_kind)`` for the windows of one episode.

    Args:
        series: ``(n_bins, n_channels)``.
        features: ``(n_windows, n_features)``.
    """
    starts = window_starts(len(series), layout.window)
    baseline, level = baselines(series, features, starts, layout)
    if input_kind == "summary":
        return summary_inputs(features, baseline)
    return tensor_inputs(window_views(series, layout.window), level)
