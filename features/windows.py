"""Windows over a series: where they start, their phase, and its share of the window.

A window is a slice of the series, a view; it is never copied to disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from episodes.format import INFECTED, NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from episodes.reading import Job, Moments
    from features.alignment import Grid
    from features.registry import Layout, WindowSpec


@dataclass(frozen=True)
class WindowTable:
    """One entry per window, in order of time."""

    start_bin: NDArray[np.int64]  # (n_windows,)
    start_s: NDArray[np.float64]  # (n_windows,) seconds since the episode's first label
    label: NDArray[np.str_]  # (n_windows,)
    purity: NDArray[np.float64]  # (n_windows,) share of the window that has the label's phase

    def __len__(self) -> int:
        return len(self.start_bin)


def window_starts(n_bins: int, window: WindowSpec) -> NDArray[np.int64]:
    """First bin of every whole window."""
    return np.arange(0, n_bins - window.n_bins + 1, window.stride_bins, dtype=np.int64)


def label_windows(labels: Moments, grid: Grid, window: WindowSpec) -> WindowTable:
    """Label each window with the phase at its centre.

    The phase at a time is that of the latest label at or before it; of labels with the same time,
    the last in the file.
    """
    starts = window_starts(grid.n_bins, window)
    label = _phase_at(labels, grid, starts * grid.bin_ns + window.n_bins * grid.bin_ns // 2)
    bin_phase = bin_phases(labels, grid)
    inside = starts[:, None] + np.arange(window.n_bins)
    purity = (bin_phase[inside] == label[:, None]).mean(axis=1) if len(starts) else np.zeros(0)
    return WindowTable(starts, starts * grid.bin_ns / 1e9, label, purity)


def bin_phases(labels: Moments, grid: Grid) -> NDArray[np.str_]:
    """The phase at the centre of every bin, ``(n_bins,)``."""
    centres = np.arange(grid.n_bins, dtype=np.int64) * grid.bin_ns + grid.bin_ns // 2
    return _phase_at(labels, grid, centres)


def _phase_at(labels: Moments, grid: Grid, instants_ns: NDArray[np.int64]) -> NDArray[np.str_]:
    """The phase at instants that count from the origin of the grid."""
    order = np.argsort(labels.t_wall_ns, kind="stable")
    since = labels.t_wall_ns[order] - grid.origin_ns
    names = np.array(labels.names, dtype=np.str_)[order]
    return names[np.searchsorted(since, instants_ns, side="right") - 1]


def onset_s(labels: Moments, grid: Grid) -> float | None:
    """When an attack first begins: the earliest label of ``INFECTED``; None: never.

    Exact, in seconds since the episode's first label; of labels with the same time, the last in the
    file counts. A relapse is not a second onset.
    """
    in_force = dict(zip(labels.t_wall_ns.tolist(), labels.names, strict=True))
    onsets = [instant for instant, phase in in_force.items() if phase in INFECTED]
    return (min(onsets) - grid.origin_ns) / NS_PER_S if onsets else None


def window_jobs(
    jobs: Sequence[Job], starts: NDArray[np.int64], grid: Grid, window: WindowSpec
) -> NDArray[np.str_]:
    """The benign job under way in each window, ``(n_windows,)``; empty: none.

    Of several it is the one that overlaps the window for the longest time; of these, the one that
    started first. A job lasts from the first label if its start was not recorded, and to the end of
    the grid if its end was not.

    Args:
        starts: first bin of each window.
    """
    spans = sorted(
        (
            grid.origin_ns if job.start_ns is None else job.start_ns,
            grid.end_ns if job.end_ns is None else job.end_ns,
            job.name,
        )
        for job in jobs
    )
    begin = grid.origin_ns + starts * grid.bin_ns
    end = begin + window.n_bins * grid.bin_ns
    longest = np.zeros(len(starts), dtype=np.int64)
    names = np.full(len(starts), "", dtype=object)
    for job_start, job_end, name in spans:
        overlap = np.clip(job_end, begin, end) - np.clip(job_start, begin, end)
        longer = overlap > longest
        longest[longer], names[longer] = overlap[longer], name
    return names.astype(np.str_)


def window_views(series: NDArray[np.float32], window: WindowSpec) -> NDArray[np.float32]:
    """All whole windows ``(n_windows, n_timepoints, n_channels)`` as a view of the series."""
    n_bins, n_channels = series.shape
    if n_bins < window.n_bins:
        return np.empty((0, window.n_bins, n_channels), dtype=series.dtype)
    sliding = np.lib.stride_tricks.sliding_window_view(series, window.n_bins, axis=0)
    return sliding[:: window.stride_bins].transpose(0, 2, 1)


def source_coverage(
    series: NDArray[np.float32], starts: NDArray[np.int64], layout: Layout, sources: tuple[str, ...]
) -> NDArray[np.float32]:
    """Share of non-missing cells per window and source, ``(n_windows, n_sources)``."""
    present = ~np.isnan(series)
    length = layout.window.n_bins
    shares = np.zeros((len(starts), len(sources)), dtype=np.float32)
    for i, source in enumerate(sources):
        columns = layout.columns(source)
        if not len(columns):
            continue
        filled = np.concatenate([[0], np.cumsum(present[:, columns].sum(axis=1))])
        shares[:, i] = (filled[starts + length] - filled[starts]) / (length * len(columns))
    return shares
