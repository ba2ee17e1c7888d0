"""How fast an episode becomes windows, compared with the obvious ways.

    python -m benchmarks.extraction [STORE]

Absolute figures depend on the machine; compare the ratios. Everything runs on one core. The best of
several repetitions is reported, because others share the machine.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from episodes.archive import read_members, read_packed
from episodes.format import SOURCES
from episodes.jsonl import parse_rows
from episodes.reading import parse_episode
from episodes.store import list_store
from episodes.validation import ValidationPolicy, validate
from features.alignment import align, make_grid
from features.extraction import extract
from features.registry import LAYOUT
from features.summary import summarise
from features.windows import window_starts, window_views
from stages.batch import ingest_batch

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_STORE = Path(__file__).resolve().parent.parent / "data" / "store"
N_EPISODES = 12
REPEATS = 3


def best_s(work: Callable[[], object]) -> float:
    work()  # compiled kernels are loaded outside the measurement
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def table(title: str, unit: str, rows: dict[str, float]) -> None:
    """Rates, and how many times the slowest each is."""
    slowest = min(rows.values())
    print(f"\n{title}")
    for name, rate in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"  {name:<44}{rate:10.1f} {unit:<12}{rate / slowest:6.1f} x")


def parsing(guests: list[bytes]) -> dict[str, float]:
    fields, tag = LAYOUT.fields["guest"], SOURCES["guest"].tag
    megabytes = sum(map(len, guests)) / 1e6
    wanted = [path[0] for path in fields]

    def by_stdlib() -> None:
        for content in guests:
            rows = [json.loads(line) for line in content.splitlines()]
            np.array([[row[name] for name in wanted] for row in rows], dtype=float)

    schema = {"t_wall_ns": pl.Int64} | dict.fromkeys(wanted, pl.Float64)
    ways = {
        "phasewatch (every line checked)": lambda: [parse_rows(c, fields, tag) for c in guests],
        "polars.read_ndjson with a schema": lambda: [
            pl.read_ndjson(io.BytesIO(c), schema=schema).to_numpy() for c in guests
        ],
        "json.loads to NumPy": by_stdlib,
    }
    return {name: megabytes / best_s(way) for name, way in ways.items()}


def statistics(series: list[np.ndarray]) -> dict[str, float]:
    starts = [window_starts(len(s), LAYOUT.window) for s in series]
    n_windows = sum(map(len, starts))
    t = np.arange(100) / 10 - 4.95

    def by_numpy() -> None:
        for s in series:
            w = window_views(s, LAYOUT.window).astype(np.float64)
            np.nanmean(w, axis=1), np.nanstd(w, axis=1), np.nanpercentile(w, 95, axis=1)
            np.nansum(w * t[:, None], axis=1), np.mean(w == 0, axis=1)

    def ours() -> None:
        for s, at in zip(series, starts, strict=True):
            summarise(s, at, LAYOUT)

    ways = {"phasewatch": ours, "NumPy on sliding views (nan-aware)": by_numpy}
    return {name: n_windows / best_s(way) for name, way in ways.items()}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(store: Path) -> None:
    warnings.simplefilter("ignore")  # NumPy warns of windows without a value
    policy = ValidationPolicy()
    stored = [
        e for e in list_store(store).episodes if e.size_bytes and "DEFECT" not in e.episode_id
    ]
    chosen = stored[:: max(1, len(stored) // N_EPISODES)][:N_EPISODES]
    packed = [read_packed(e.path) for e in chosen]
    episodes = [
        parse_episode(p, e.episode_id, LAYOUT.fields) for p, e in zip(packed, chosen, strict=True)
    ]
    grids = [make_grid(e.labels.t_wall_ns, e.sources, LAYOUT.window.bin_ns) for e in episodes]
    series = [align(e.sources, g, LAYOUT) for e, g in zip(episodes, grids, strict=True)]
    print(f"{len(chosen)} episodes of {store}, {sum(map(len, packed)) / 1e6:.1f} MB packed")

    table(
        "JSON lines to columns (guest rows)",
        "MB/s",
        parsing([e.members[SOURCES["guest"].file] for e in episodes if len(e.sources["guest"])]),
    )
    table("Five statistics over 46 channels", "windows/s", statistics(series))

    def whole() -> None:
        for e in chosen:
            _, episode = validate(e, policy, LAYOUT.fields)
            if episode is not None:
                extract(episode, LAYOUT)

    steps: dict[str, Callable[[], object]] = {
        "everything: hash, unpack, judge, extract": whole,
        "of this: unpack": lambda: [
            read_members(p, e.episode_id) for p, e in zip(packed, chosen, strict=True)
        ],
        "of this: align to 10 Hz": lambda: [
            align(e.sources, g, LAYOUT) for e, g in zip(episodes, grids, strict=True)
        ],
    }
    table(
        "One core, from .tar.zst",
        "episodes/s",
        {name: len(chosen) / best_s(step) for name, step in steps.items()},
    )

    print("\nPeak memory of ingesting")
    for times in (1, 8):
        with tempfile.TemporaryDirectory() as folder:
            ingest_batch(chosen * times, Path(folder), policy, LAYOUT)
        print(f"  {len(chosen) * times:4} episodes: {peak_mib():.0f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_STORE)
