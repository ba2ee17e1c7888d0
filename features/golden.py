"""Golden vectors: frozen episodes and what was extracted from them, to catch silent changes.

Two recorded episodes: one with a coarse netflow clock and no guest rows, one with a gap, in which
``new_flows`` was changed by hand so that no two channels coincide. The committed file holds their
series, features, labels and baselines, and its digest is part of every contract. Rewrite it
(``python -m features.golden``) only with ``contract.PREPROCESSING_VERSION`` or the registry.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from episodes.format import ARCHIVE_SUFFIX
from features.contract import GOLDEN_FILE
from features.files import file_sha256
from features.registry import LAYOUT, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from features.extraction import Extracted

RELATIVE_TOLERANCE = 1e-5
REWRITE = "rewrite it: python -m features.golden"


@dataclass(frozen=True)
class GoldenEpisode:
    """What was extracted from one episode when it was frozen."""

    series: NDArray[np.float32]  # (n_bins, n_channels)
    features: NDArray[np.float32]  # (n_windows, n_features)
    labels: NDArray[np.str_]  # (n_windows,)
    baseline: NDArray[np.float32]  # (n_windows, n_features)
    level: NDArray[np.float32]  # (n_windows, n_channels)


def read_golden(layout: Layout = LAYOUT) -> dict[str, GoldenEpisode] | None:
    """The committed vectors by episode id; None if they were made for other inputs.

    Inputs differ if channels, statistics or windows have other names, order or lengths. A unit or a
    rule may differ: a model can still be given the vectors.
    """
    with np.load(GOLDEN_FILE, allow_pickle=False) as file:  # noqa: TID251  no pickle is read
        if file["inputs"].tolist() != _inputs(layout):
            return None
        ids = sorted(name.removesuffix(".series") for name in file.files if ".series" in name)
        return {
            i: GoldenEpisode(*(file[f"{i}.{each.name}"] for each in fields(GoldenEpisode)))
            for i in ids
        }


def _inputs(layout: Layout) -> list[str]:
    window = layout.window
    grid = (window.bin_ms, window.length_ms, window.stride_ms)
    return [*layout.feature_names, *layout.channel_names, *map(str, grid)]


def replay(layout: Layout = LAYOUT) -> dict[str, Extracted]:
    """Extract every golden episode with the current code; by id."""
    from episodes.reading import (
        read_episode,  # here: these load compiled code, which read_golden does not need
    )
    from features.extraction import extract

    extracted = {}
    for path in sorted(GOLDEN_FILE.parent.glob(f"*{ARCHIVE_SUFFIX}")):
        episode_id = path.name.removesuffix(ARCHIVE_SUFFIX)
        extracted[episode_id] = extract(read_episode(path, episode_id, layout.fields), layout)
    return extracted


def differences(layout: Layout = LAYOUT) -> list[str]:
    """How a replay differs from the committed file; empty if it does not.

    One line per episode and channel names the quantities that differ, with the largest difference.
    Values are compared within 1e-5 of the larger of the value and the quantity's RMS, because
    processors differ in the last bits; missing values and labels are compared exactly.
    """
    from episodes.archive import ArchiveError
    from features.alignment import AlignmentError

    golden = read_golden(layout)
    if golden is None:
        return [f"{GOLDEN_FILE.name} is for other channels, statistics or windows; {REWRITE}"]
    try:
        replayed = replay(layout)
    except (ArchiveError, AlignmentError, OSError) as error:
        return [f"the golden episodes cannot be replayed: {error}"]
    lines = [f"{gone}: the golden episode is missing" for gone in golden.keys() - replayed.keys()]
    lines += [f"{new}: not in {GOLDEN_FILE.name}; {REWRITE}" for new in replayed.keys() - golden]
    for episode_id in sorted(golden.keys() & replayed.keys()):
        changes = _episode_differences(golden[episode_id], replayed[episode_id], layout)
        lines += [f"{episode_id}: {line}" for line in changes]
    return lines


def _episode_differences(was: GoldenEpisode, now: Extracted, layout: Layout) -> Iterator[str]:
    pairs = {
        "series": (was.series, now.series),
        "features": (was.features, now.features),
        "labels": (was.labels, now.windows.label),
        "baseline": (was.baseline, now.baseline),
        "level": (was.level, now.level),
    }
    other_shapes = {name: pair for name, pair in pairs.items() if pair[0].shape != pair[1].shape}
    for name, (before, after) in other_shapes.items():
        yield f"shape of {name} was {before.shape}, is {after.shape}"
    if other_shapes:
        return
    for window in np.flatnonzero(was.labels != now.windows.label):
        yield f"window {window}: label was {was.labels[window]}, is {now.windows.label[window]}"
    n_stats = len(layout.stats)
    for i, channel in enumerate(layout.channel_names):
        changes = [
            difference(was.series[:, i], now.series[:, i], "series", "bin"),
            difference(was.level[:, i], now.level[:, i], "level", "window"),
        ]
        for j, stat in enumerate(layout.stats, start=i * n_stats):
            changes += [
                difference(was.features[:, j], now.features[:, j], stat, "window"),
                difference(was.baseline[:, j], now.baseline[:, j], f"baseline of {stat}", "window"),
            ]
        if any(changes):
            yield f"{channel}: " + "; ".join(filter(None, changes))


def difference(
    was: NDArray[np.float32], now: NDArray[np.float32], name: str, unit: str
) -> str | None:
    """How often ``now`` differs from ``was``, both ``(n,)``, and where most; None: nowhere."""
    error = np.abs(now.astype(np.float64) - was)
    present = was[~np.isnan(was)].astype(np.float64)
    rms = np.sqrt(np.mean(present**2)) if len(present) else 0.0
    off = ~(error <= RELATIVE_TOLERANCE * np.fmax(np.abs(was), rms)) & ~(
        np.isnan(was) & np.isnan(now)
    )
    if not off.any():
        return None
    # a value that became missing, or stopped being so, is the largest difference of all
    worst = int(np.argmax(np.where(off, np.nan_to_num(error, nan=np.inf), -1.0)))
    before, after = (
        "missing" if np.isnan(side[worst]) else f"{side[worst]:.7g}" for side in (was, now)
    )
    return (
        f"{name} in {np.count_nonzero(off)} of {len(was)} {unit}s, "
        f"most in {unit} {worst} (was {before}, is {after})"
    )


def _write() -> str:
    """Replay the golden episodes and write what they give; returns a line about it."""
    before = file_sha256(GOLDEN_FILE)
    arrays: dict[str, NDArray] = {"inputs": np.array(_inputs(LAYOUT))}
    for episode_id, extracted in replay().items():
        arrays[f"{episode_id}.series"] = extracted.series
        arrays[f"{episode_id}.features"] = extracted.features
        arrays[f"{episode_id}.labels"] = extracted.windows.label
        arrays[f"{episode_id}.baseline"] = extracted.baseline
        arrays[f"{episode_id}.level"] = extracted.level
    np.savez_compressed(GOLDEN_FILE, **arrays)  # type: ignore[arg-type]
    after = file_sha256(GOLDEN_FILE)
    effect = "unchanged" if after == before else f"was {before[:12]}: retrain every checkpoint"
    n_episodes, n_inputs = len(arrays) // len(fields(GoldenEpisode)), len(LAYOUT.channel_names)
    return (
        f"wrote {GOLDEN_FILE}: {n_episodes} episodes, {n_inputs} channels, "
        f"sha256 {after[:12]} ({effect})"
    )


if __name__ == "__main__":
    print(_write())
