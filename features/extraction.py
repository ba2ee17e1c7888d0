"""One episode to its series, windows and features: the one path for shards, on demand and live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from episodes.format import SOURCES
from features.alignment import align, make_grid
from features.relative import baselines
from features.summary import summarise
from features.windows import (
    WindowTable,
    label_windows,
    onset_s,
    source_coverage,
    window_jobs,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from episodes.reading import Episode
    from features.registry import Layout

SOURCE_NAMES = tuple(SOURCES)


@dataclass(frozen=True)
class Extracted:
    """The model inputs of one episode."""

    series: NDArray[np.float32]  # (n_bins, n_channels)
    windows: WindowTable
    features: NDArray[np.float32]  # (n_windows, n_features)
    coverage: NDArray[np.float32]  # (n_windows, n_sources), in order of SOURCE_NAMES
    baseline: NDArray[np.float32]  # (n_windows, n_features) of the features, see features.relative
    level: NDArray[np.float32]  # (n_windows, n_channels) baseline of the series
    onset_s: float | None  # of the attack; None: no attack
    jobs: NDArray[np.str_]  # (n_windows,) benign job under way; empty: none


def extract(episode: Episode, layout: Layout) -> Extracted:
    """Align, cut and summarise one episode.

    Raises:
        AlignmentError: see ``features.alignment.make_grid``.
    """
    grid = make_grid(episode.labels.t_wall_ns, episode.sources, layout.window.bin_ns)
    series = align(episode.sources, grid, layout)
    windows = label_windows(episode.labels, grid, layout.window)
    features = summarise(series, windows.start_bin, layout)
    baseline, level = baselines(series, features, windows.start_bin, layout)
    return Extracted(
        series=series,
        windows=windows,
        features=features,
        baseline=baseline,
        level=level,
        coverage=source_coverage(series, windows.start_bin, layout, SOURCE_NAMES),
        onset_s=onset_s(episode.labels, grid),
        jobs=window_jobs(episode.jobs, windows.start_bin, grid, layout.window),
    )
