"""Golden vectors: frozen episodes and what they gave, replayed to catch silent changes.

Two recorded episodes: one with a coarse netflow clock and no guest rows, one with a gap, in which
``new_flows`` was changed by hand so that no two channels coincide. The committed file holds their
series, features and labels, and its digest is part of every contract. Rewrite it
(``python -m features.golden``) only with ``contract.PREPROCESSING_VERSION`` or the registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from episodes.format import ARCHIVE_SUFFIX
from features.contract import GOLDEN_FILE
from features.registry import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from features.extraction import Extracted
    from features.registry import Layout

RELATIVE_TOLERANCE = 1e-5
REWRITE = "rewrite it: python -m features.golden"


@dataclass(frozen=True)
class GoldenEpisode:
    """What one frozen episode gave when it was frozen."""

    series: NDArray[np.float32]  # (n_bins, n_channels)
    features: NDArray[np.float32]  # (n_windows, n_features)
    labels: NDArray[np.str_]  # (n_windows,)


def read_golden(layout: Layout = LAYOUT) -> dict[str, GoldenEpisode] | None:
    """The committed vectors by episode id; None where they were made for other inputs.

    Inputs are other where channels, statistics or windows have other names, order or lengths; a
    unit or a rule may differ, for it does not keep the vectors from being fed to a model.
    """
    with np.load(GOLDEN_FILE, allow_pickle=False) as file:  # noqa: TID251  no pickle is read
        if file["inputs"].tolist() != _inputs(layout):
            return None
        ids = sorted(name.removesuffix(".series") for name in file.files if ".series" in name)
        return {
            i: GoldenEpisode(file[f"{i}.series"], file[f"{i}.features"], file[f"{i}.labels"])
            for i in ids
        }


def _inputs(layout: Layout) -> list[str]:
    window = layout.window
    grid = (window.bin_ms, window.length_ms, window.stride_ms)
    return [*layout.feature_names, *layout.channel_names, *map(str, grid)]


def replay(layout: Layout = LAYOUT) -> dict[str, Extracted]:
    """Extract every golden episode with the code as it is, by id."""
    from episodes.reading import read_episode  # compiled code: reading the vectors needs none
    from features.extraction import extract

    extracted = {}
    for path in sorted(GOLDEN_FILE.parent.glob(f"*{ARCHIVE_SUFFIX}")):
        episode_id = path.name.removesuffix(ARCHIVE_SUFFIX)
        extracted[episode_id] = extract(read_episode(path, episode_id, layout.fields), layout)
    return extracted


def differences(layout: Layout = LAYOUT) -> list[str]:
    """What a replay gives otherwise than the committed file says; empty: nothing.

    A line an episode and channel says which quantities differ, where most and by how much. Values
    are compared within 1e-5 of the larger of the value and the quantity's RMS, because processors
    differ in the last bits; missing values and labels exactly.
    """
    from episodes.archive import ArchiveError
    from features.alignment import AlignmentError

    golden = read_golden(layout)
    if golden is None:
        return [f"{GOLDEN_FILE.name} was made for other channels, statistics or windows; {REWRITE}"]
    try:
        replayed = replay(layout)
    except (ArchiveError, AlignmentError, OSError) as error:
        return [f"the golden episodes cannot be replayed: {error}"]
    lines = [f"{gone}: the golden episode is gone" for gone in golden.keys() - replayed.keys()]
    lines += [f"{new}: not in {GOLDEN_FILE.name}; {REWRITE}" for new in replayed.keys() - golden]
    for episode_id in sorted(golden.keys() & replayed.keys()):
        told = _episode_differences(golden[episode_id], replayed[episode_id], layout)
        lines += [f"{episode_id}: {line}" for line in told]
    return lines


def _episode_differences(was: GoldenEpisode, now: Extracted, layout: Layout) -> Iterator[str]:
    pairs = {
        "series": (was.series, now.series),
        "features": (was.features, now.features),
        "labels": (was.labels, now.windows.label),
    }
    other_shapes = {name: pair for name, pair in pairs.items() if pair[0].shape != pair[1].shape}
    for name, (before, after) in other_shapes.items():
        yield f"{name} of shape {before.shape}, now {after.shape}"
    if other_shapes:
        return
    for window in np.flatnonzero(was.labels != now.windows.label):
        yield f"window {window}: label was {was.labels[window]}, is {now.windows.label[window]}"
    n_stats = len(layout.stats)
    for i, channel in enumerate(layout.channel_names):
        found = [difference(was.series[:, i], now.series[:, i], "series", "bin")]
        for j, stat in enumerate(layout.stats, start=i * n_stats):
            found.append(difference(was.features[:, j], now.features[:, j], stat, "window"))
        if any(found):
            yield f"{channel}: " + "; ".join(filter(None, found))


def difference(
    was: NDArray[np.float32], now: NDArray[np.float32], name: str, unit: str
) -> str | None:
    """How ``now`` differs from ``was``, both ``(n,)``: how often, and where most; None: nowhere."""
    error = np.abs(now.astype(np.float64) - was)
    there = was[~np.isnan(was)].astype(np.float64)
    rms = np.sqrt(np.mean(there**2)) if len(there) else 0.0
    off = ~(error <= RELATIVE_TOLERANCE * np.fmax(np.abs(was), rms)) & ~(
        np.isnan(was) & np.isnan(now)
    )
    if not off.any():
        return None
    # a value that came or went is the largest difference of all
    worst = int(np.argmax(np.where(off, np.nan_to_num(error, nan=np.inf), -1.0)))
    before, after = (
        "missing" if np.isnan(side[worst]) else f"{side[worst]:.7g}" for side in (was, now)
    )
    return (
        f"{name} in {np.count_nonzero(off)} of {len(was)} {unit}s, "
        f"most in {unit} {worst} (was {before}, is {after})"
    )


def _write() -> None:
    arrays: dict[str, NDArray] = {"inputs": np.array(_inputs(LAYOUT))}
    for episode_id, extracted in replay().items():
        arrays[f"{episode_id}.series"] = extracted.series
        arrays[f"{episode_id}.features"] = extracted.features
        arrays[f"{episode_id}.labels"] = extracted.windows.label
    np.savez_compressed(GOLDEN_FILE, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    _write()
