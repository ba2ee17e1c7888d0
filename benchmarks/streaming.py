"""Live windows compared with those of batch, for every usable episode and through every source.

    python -m benchmarks.streaming [--bundle FOLDER]

Two things need the whole episode: recovering the instants of a netflow clock that is in whole
seconds, and the zeros before the first packet. A third needs to know where it ends: a last window
after whose end no row comes that a device sees. Prints, for ``--replay``, ``--follow`` and
``--stdin``, how many windows these touch, and which share of the values that a device sees of them.
With a bundle, also how far its probabilities move. Exit code 1 if anything else differs by a bit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.lines import recording
from config.paths import CLONE
from episodes.format import NS_PER_S
from episodes.reading import Episode
from episodes.store import list_store
from episodes.validation import ValidationPolicy, validate
from features.extraction import Extracted, extract
from features.registry import LAYOUT
from live.bundle import load_bundle
from live.sources import DEPLOYABLE, FolderSource, ReplaySource, RowSource, StdinSource
from live.stream import LiveWindow, LiveWindows
from live.timeline import timeline

SEEN = LAYOUT.channels_of("realistic")
NETFLOW = np.array([channel.source == "netflow" for channel in LAYOUT.channels])
KEPT = np.repeat(SEEN, len(LAYOUT.stats))


@dataclass
class Found:
    """What differs through one source."""

    windows: int = 0
    touched: int = 0  # by netflow's clock, or by zeros before its first packet
    later: int = 0  # that have such a window in their past
    unended: int = 0  # of batch alone: no row says that they have ended
    shares: list[float] = field(default_factory=list)  # of the values seen, by window touched
    moves: list[float] = field(default_factory=list)  # of a probability, by window
    phases: int = 0  # predicted otherwise
    wrong: list[str] = field(default_factory=list)  # what must not differ, and does


def read(source: RowSource, origin_ns: int | None, *, until_idle: bool = False) -> list[LiveWindow]:
    windows, made = LiveWindows(LAYOUT, origin_ns), list[LiveWindow]()
    while (found := source.read()) is not None and (found or not until_idle):
        for name, lines in found:
            made += windows.push(name, lines)
    source.close()
    return made + list(windows.close())


def streams(members: Mapping[str, bytes]) -> Iterator[tuple[str, list[LiveWindow]]]:
    """The windows of an episode's files through each source."""
    replay = ReplaySource(members, 0)
    origin = replay.origin_ns()
    yield "--replay", read(replay, origin)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in members.items():
            (Path(folder) / name).write_bytes(content)
        follow = FolderSource(Path(folder))
        yield "--follow", read(follow, follow.origin_ns(), until_idle=True)
    reading, writing = os.pipe()
    rows = b"".join(lines + b"\n" for _, _, lines in timeline(members, DEPLOYABLE))
    writer = threading.Thread(target=write, args=(writing, rows))
    writer.start()
    yield "--stdin", read(StdinSource(reading), origin)
    writer.join()
    os.close(reading)


def write(handle: int, content: bytes) -> None:
    with os.fdopen(handle, "wb") as pipe:
        pipe.write(content)


def differ(one: NDArray, other: NDArray) -> NDArray[np.bool_]:
    return ~((one == other) | (np.isnan(one) & np.isnan(other)))


def batch_windows(batch: Extracted, live: list[LiveWindow]) -> list[LiveWindow]:
    """The same windows as batch has them."""
    n = LAYOUT.window.n_bins
    return [
        replace(
            each,
            series=batch.series[start : start + n],
            features=batch.features[i],
            baseline=batch.baseline[i],
            level=batch.level[i],
        )
        for i, (each, start) in enumerate(zip(live, batch.windows.start_bin, strict=False))
    ]


def compare(
    episode_id: str, episode: Episode, live: list[LiveWindow], batch: Extracted, found: Found
) -> Iterator[tuple[LiveWindow, LiveWindow]]:
    """Count what differs; yields each live window with that of batch."""
    seen_ns = max(int(t.max()) for s in DEPLOYABLE if len(t := episode.sources[s].t_wall_ns))
    seen_s = (seen_ns - int(episode.labels.t_wall_ns.min())) / NS_PER_S
    ends_s = batch.windows.start_s + LAYOUT.window.length_ms / 1000
    found.unended += int((ends_s > seen_s).sum())
    if len(live) != (ends_s <= seen_s).sum():
        found.wrong.append(f"{episode_id}: {len(live)} windows, not {len(batch.windows)}")
        return
    touched = False
    for one, other in zip(live, batch_windows(batch, live), strict=True):
        found.windows += 1
        series = differ(one.series, other.series)[:, SEEN]
        if np.any(series[:, ~NETFLOW[SEEN]]):
            found.wrong.append(f"{episode_id} window {one.number}: another source than netflow")
        if np.any(series):
            touched = True
            found.touched += 1
            found.shares.append(float(series.mean()))
        elif np.any(differ(one.features, other.features)[KEPT]):
            found.wrong.append(f"{episode_id} window {one.number}: its statistics")
        elif np.any(differ(one.baseline, other.baseline)[KEPT]) or np.any(
            differ(one.level, other.level)[SEEN]
        ):
            found.later += 1
            if not touched:
                found.wrong.append(f"{episode_id} window {one.number}: its past")
        yield one, other


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare live windows with those of batch.")
    parser.add_argument("--bundle", type=Path, help="a folder that phasewatch bundle made")
    chosen = parser.parse_args()
    bundle = load_bundle(chosen.bundle, LAYOUT) if chosen.bundle else None
    assert CLONE
    by_source: dict[str, Found] = {}
    for stored in list_store(CLONE / "data" / "store").episodes:
        record, episode = validate(stored, ValidationPolicy(), LAYOUT.fields)
        if not record.usable or episode is None:
            continue
        batch = extract(episode, LAYOUT)
        for source, live in streams(dict(episode.members)):
            found = by_source.setdefault(source, Found())
            for one, other in compare(stored.episode_id, episode, live, batch, found):
                if bundle:
                    p, q = (bundle.runtime.proba(bundle.inputs(each))[0] for each in (one, other))
                    found.moves.append(float(np.abs(p - q).max()))
                    found.phases += int(p.argmax() != q.argmax())
    with recording("streaming") as out:
        for source, found in by_source.items():
            note = "only the whole episode tells"
            out.limit(f"{source}: other windows that differ", len(found.wrong), 0, "", note)
            out.alone(f"{source}: windows touched of {found.windows:,}", found.touched, "windows")
            out.alone(f"{source}: windows with these in their past", found.later, "windows")
            out.alone(f"{source}: last windows that no row ends", found.unended, "windows")
            out.alone(
                f"{source}: values touched of these", 100 * float(np.mean(found.shares or 0)), "%"
            )
            if bundle:
                moved = np.array(found.moves)
                what = f"{source}: {bundle.variant}, move of a probability"
                out.alone(f"{what}, p99", float(np.quantile(moved, 0.99)), "")
                out.alone(f"{what}, largest", float(moved.max()), "")
                out.alone(f"{source}: predicted phases that change", found.phases, "windows")
    wrong = [line for found in by_source.values() for line in found.wrong]
    print("\n".join(wrong[:20]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
