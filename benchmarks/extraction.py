"""How fast an episode becomes windows, beside other ways: parsing, statistics, everything.

    python -m benchmarks.extraction [STORE]

Every way runs on one core, and first has to give equal numbers. Peers that are not installed
(the extra ``bench``) are left out. Absolute figures depend on the machine; compare the ratios.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from benchmarks.lines import alternated, installed, recording
from benchmarks.partitions import measured
from episodes.archive import ArchiveError, read_members, read_packed
from episodes.format import SOURCES
from episodes.jsonl import parse_rows
from episodes.reading import parse_episode
from episodes.store import list_store
from episodes.validation import ValidationPolicy, validate
from features.alignment import align, make_grid
from features.extraction import extract
from features.registry import LAYOUT, STATS
from features.summary import summarise
from features.windows import window_starts, window_views
from stages.batch import ingest_batch
from stages.workspace import workspace_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from benchmarks.lines import Recording
    from episodes.store import StoredEpisode

    Tables = list[NDArray[np.float64]]

N_EPISODES = 12
INGESTED = (12, 96, 480)  # episodes, each by a process of its own
EVERYTHING = 4.0  # times hash and unpack, at most
WINDOW, STRIDE = LAYOUT.window.n_bins, LAYOUT.window.stride_bins
BIN_S = LAYOUT.window.bin_ms / 1000


# --- JSON lines to columns


def parsing(out: Recording, guests: list[bytes], folder: Path) -> None:
    """Rows of the guest, as float64 columns."""
    fields, tag = LAYOUT.fields["guest"], SOURCES["guest"].tag
    names = [path[0] for path in fields]
    schema = {"t_wall_ns": pl.Int64} | dict.fromkeys(names, pl.Float64)

    def ours() -> Tables:
        return [parse_rows(content, fields, tag).values for content in guests]

    def by_polars() -> Tables:
        read = [pl.read_ndjson(io.BytesIO(content), schema=schema) for content in guests]
        return [table.select(names).to_numpy() for table in read]

    def by_stdlib() -> Tables:
        return [
            np.array(
                [[row[name] for name in names] for row in map(json.loads, content.splitlines())],
                dtype=float,
            )
            for content in guests
        ]

    peers: dict[str, Callable[[], Tables]] = {
        "polars.read_ndjson with a schema": by_polars,
        "json.loads to NumPy": by_stdlib,
    }
    if installed("duckdb"):
        peers["DuckDB read_ndjson with columns"] = partial(
            by_duckdb, written(guests, folder), names
        )
    for way in peers.values():
        for mine, other in zip(ours(), way(), strict=True):
            np.testing.assert_array_equal(mine, other)
    megabytes = sum(map(len, guests)) / 1e6
    out.against("JSON lines to columns, every line checked", ours, peers, megabytes, "MB")


def written(contents: list[bytes], folder: Path) -> list[Path]:
    """Files, for whoever reads nothing else; they are in the page cache."""
    paths = [folder / f"{number}.jsonl" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def by_duckdb(paths: list[Path], names: list[str]) -> Tables:
    import duckdb

    columns = ", ".join(f"'{name}': 'DOUBLE'" for name in names)
    with duckdb.connect(config={"threads": 1}) as connection:
        read = [
            connection.execute(
                f"SELECT * FROM read_ndjson('{path}', columns={{{columns}}})"
            ).fetchnumpy()
            for path in paths
        ]
    filled = [[np.ma.filled(table[name].astype(float), np.nan) for name in names] for table in read]
    return [np.stack(columns, axis=1) for columns in filled]


# --- statistics


def statistics(out: Recording, series: list[NDArray[np.float32]]) -> None:
    """The five statistics of each window and channel."""
    n_windows = sum(len(window_starts(len(s), LAYOUT.window)) for s in series)
    several = f"{len(STATS)} statistics of {len(LAYOUT.channels)} channels"
    out.against(
        several, partial(ours, series), {"NumPy on sliding views (nan-aware)":
        partial(by_numpy, series)}, n_windows, "windows",
    )  # fmt: skip
    # the others know no missing values: channels that have all
    whole = [s[:, ~np.isnan(s).any(axis=0)] for s in series]
    n_values = sum(len(window_starts(len(s), LAYOUT.window)) * s.shape[1] for s in whole)
    if installed("tsflex"):
        for mine, other in zip(ours(whole), by_tsflex(whole), strict=True):
            same(mine, other)
        out.against(
            "5 statistics of channels without gaps", partial(ours, whole),
            {"tsflex, vectorized NumPy": partial(by_tsflex, whole)}, n_values, "channel windows",
        )  # fmt: skip
    if installed("tsfel"):
        few = whole[:2]  # it takes a thousand times as long
        n_values = sum(len(window_starts(len(s), LAYOUT.window)) * s.shape[1] for s in few)
        three = [STATS.index(name) for name in ("mean", "std", "slope")]
        for mine, other in zip(ours(few), by_tsfel(few), strict=True):
            same(mine[..., three], other)
        out.against(
            "5 statistics of channels without gaps", partial(ours, few),
            {"tsfel, 3 of them": partial(by_tsfel, few)}, n_values, "channel windows", rounds=3,
        )  # fmt: skip


def same(mine: NDArray[Any], other: NDArray[Any]) -> None:
    """Ours are float32, and a slope near 0 has the error of the values."""
    np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6 * np.abs(mine).max())


def ours(series: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Each (n_windows, n_channels, n_stats)."""
    return [
        summarise(s, window_starts(len(s), LAYOUT.window), LAYOUT).reshape(
            -1, s.shape[1], len(STATS)
        )
        for s in series
    ]


def by_numpy(series: list[NDArray[np.float32]]) -> None:
    t = (np.arange(WINDOW) - (WINDOW - 1) / 2) * BIN_S
    for s in series:
        w = window_views(s, LAYOUT.window).astype(np.float64)
        np.nanmean(w, axis=1), np.nanstd(w, axis=1), np.nanpercentile(w, 95, axis=1)
        np.nansum(w * t[:, None], axis=1), np.mean(w == 0, axis=1)


def slope(w: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    t = (np.arange(w.shape[axis]) - (w.shape[axis] - 1) / 2) * BIN_S
    return np.asarray(w @ t / (t @ t))


def zeros(w: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(np.mean(w == 0, axis=axis))


def p95(w: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(np.percentile(w, 95, axis=axis))


def by_tsflex(series: list[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    from tsflex.features import FeatureCollection, FuncWrapper, MultipleFeatureDescriptors

    functions = {"mean": np.mean, "std": np.std, "p95": p95, "slope": slope, "zero_frac": zeros}
    wrapped = [
        FuncWrapper(function, output_names=name, vectorized=True, axis=1)
        for name, function in functions.items()
    ]
    found = []
    for s in series:
        names = [f"c{number}" for number in range(s.shape[1])]
        features = FeatureCollection(
            MultipleFeatureDescriptors(wrapped, names, windows=WINDOW, strides=STRIDE)
        )
        ended = np.vstack([s, s[-1:]])  # a window ends before the last row; 0 jobs: this process
        table = features.calculate(frame(ended), n_jobs=0, return_df=True)
        columns = [table[f"{c}__{stat}__w={WINDOW}"].to_numpy() for c in names for stat in STATS]
        found.append(np.stack(columns, axis=1).reshape(len(table), len(names), len(STATS)))
    return found


def by_tsfel(series: list[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    import tsfel

    known = tsfel.get_features_by_domain("statistical") | tsfel.get_features_by_domain("temporal")
    every = {name: how for features in known.values() for name, how in features.items()}
    chosen = {"chosen": {name: every[name] for name in ("Mean", "Standard deviation", "Slope")}}
    found = []
    for s in series:
        names = [f"c{number}" for number in range(s.shape[1])]
        table = tsfel.time_series_features_extractor(
            chosen, frame(s), fs=1 / BIN_S, window_size=WINDOW, overlap=1 - STRIDE / WINDOW,
            verbose=0, n_jobs=None,
        )  # fmt: skip
        columns = [
            table[f"{c}_{stat}"].to_numpy() / (BIN_S if stat == "Slope" else 1)
            for c in names
            for stat in chosen["chosen"]
        ]
        found.append(np.stack(columns, axis=1).reshape(len(table), len(names), 3))
    return found


def frame(s: NDArray[np.float32]) -> Any:
    import pandas as pd

    return pd.DataFrame(
        s.astype(np.float64), columns=[f"c{number}" for number in range(s.shape[1])]
    )


# --- everything


def hashed_and_unpacked(stored: StoredEpisode, *, files: bool = False) -> None:
    """Hash and unpack an archive, which the time of anything more is compared with.

    Args:
        files: hash the files in it, too, as the format requires.
    """
    content = read_packed(stored.path)
    hashlib.sha256(content).digest()
    with suppress(ArchiveError):  # a simulated defect
        members = read_members(content, stored.episode_id)
        for member in members.values() if files else ():
            hashlib.sha256(member).digest()


FLOORS: dict[str, Callable[[StoredEpisode], object]] = {
    "hash and unpack": hashed_and_unpacked,
    "hash and unpack, with the hashes of the files inside": partial(
        hashed_and_unpacked, files=True
    ),
}


def chosen_of(store: Path) -> list[StoredEpisode]:
    """Some sound episodes, from all over the store."""
    stored = [
        e for e in list_store(store).episodes if e.size_bytes and "DEFECT" not in e.episode_id
    ]
    return stored[:: max(1, len(stored) // N_EPISODES)][:N_EPISODES]


def main(store: Path) -> None:
    warnings.simplefilter("ignore")  # NumPy warns of windows without a value
    policy = ValidationPolicy()
    chosen = chosen_of(store)
    packed = [read_packed(e.path) for e in chosen]
    episodes = [
        parse_episode(p, e.episode_id, LAYOUT.fields) for p, e in zip(packed, chosen, strict=True)
    ]
    grids = [make_grid(e.labels.t_wall_ns, e.sources, LAYOUT.window.bin_ns) for e in episodes]
    series = [align(e.sources, g, LAYOUT) for e, g in zip(episodes, grids, strict=True)]

    parsed = {e.episode_id: (e.sources, g) for e, g in zip(episodes, grids, strict=True)}

    def whole(stored: StoredEpisode) -> None:
        _, episode = validate(stored, policy, LAYOUT.fields)
        if episode is not None:
            extract(episode, LAYOUT)

    def aligned(stored: StoredEpisode) -> None:
        align(*parsed[stored.episode_id], LAYOUT)

    with recording("extraction", "duckdb", "tsflex", "tsfel") as out:
        with tempfile.TemporaryDirectory() as folder:
            full = [e.members[SOURCES["guest"].file] for e in episodes if len(e.sources["guest"])]
            parsing(out, full, Path(folder))
        statistics(out, series)
        seconds = alternated({"whole": whole, **FLOORS, "align": aligned}, chosen)
        for name in FLOORS:
            ratio = median(a / b for a, b in zip(seconds["whole"], seconds[name], strict=True))
            out.limit(
                "episode to windows, from .tar.zst", ratio, EVERYTHING, "times",
                f"times {name}, median of rounds",
            )  # fmt: skip
        for name, rounds in seconds.items():
            print(f"  {name}: {1 / median(rounds):.1f} episodes/CPU s")
        held = {}
        for n in INGESTED:
            itself = [sys.executable, "-m", "benchmarks.extraction", str(store), str(n)]
            held[n] = measured(itself).peak_mb
            out.point("Memory of ingest", n, "episodes", held[n], "MB")
        few, many = min(held), max(held)
        out.limit(
            f"memory of ingesting {many} episodes", held[many] / held[few], 1.1, "times",
            f"times that of {few}",
        )  # fmt: skip


def ingest(store: Path, n: int) -> None:
    """Ingest so many episodes as one batch."""
    stored = chosen_of(store)
    with tempfile.TemporaryDirectory() as folder:
        repeated = stored * -(-n // len(stored))
        ingest_batch(repeated[:n], Path(folder), ValidationPolicy(), LAYOUT)


if __name__ == "__main__":
    chosen_store = (
        Path(sys.argv[1]) if len(sys.argv) > 1 else workspace_from_environment().store_path
    )
    if len(sys.argv) > 2:
        ingest(chosen_store, int(sys.argv[2]))
    else:
        main(chosen_store)
