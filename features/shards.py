"""Shards: the inputs of a batch's usable episodes on disk. ``features.loaders`` reads them.

A tensor shard is the 10 Hz series of up to 256 episodes, end to end, time-major, memory-mapped,
with a table of its windows and the baseline of each; a window is a view into it. A feature shard
is the same table and one row of statistics for each window, plain and relative, memory-mapped too:
float32 statistics do not compress. Splits are not known here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.extraction import SOURCE_NAMES
from features.relative import summary_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from episodes.validation import EpisodeRecord
    from features.extraction import Extracted
    from features.registry import InputKind, Layout


class NewFiles(Protocol):
    """Where to write the files of an artifact."""

    def new_file(self, role: str, suffix: str) -> Path: ...


class Files(Protocol):
    """The files of an artifact, by role."""

    def path(self, role: str) -> Path: ...
    def paths(self, kind: str) -> list[Path]: ...


EPISODES_PER_SHARD = 256

WINDOW_FIELDS = [
    ("episode_id", pa.string()),
    ("host_id", pa.string()),
    ("sample_sha256", pa.string()),
    ("sample_name", pa.string()),
    ("image_sha256", pa.string()),  # of the VM's image; empty: not stated
    ("profile", pa.string()),
    ("verdict", pa.string()),
    ("synthetic", pa.bool_()),
    ("parent_episode_id", pa.string()),  # of a simulated episode; empty: recorded
    ("started_at_wall_ns", pa.int64()),
    ("ended_at_wall_ns", pa.int64()),
    ("window", pa.int32()),  # position in the episode
    ("start_s", pa.float64()),
    ("label", pa.string()),
    ("job", pa.string()),  # benign job under way; empty: none
    ("purity", pa.float32()),
    ("onset_s", pa.float64()),  # of the episode's attack, exact; null: no attack
    *((f"coverage_{source}", pa.float32()) for source in SOURCE_NAMES),
    ("shard", pa.int32()),
    ("first_bin", pa.int64()),  # first row of the window in the tensor shard
    ("row", pa.int64()),  # of the feature shard, and of the levels
]
WINDOW_COLUMNS = tuple(name for name, _ in WINDOW_FIELDS)
_WINDOW_SCHEMA = pa.schema(WINDOW_FIELDS)
_PER_WINDOW = {"window", "start_s", "label", "job", "purity", "first_bin", "row"} | {
    f"coverage_{source}" for source in SOURCE_NAMES
}
"""Columns whose values differ between windows of an episode; ``shard`` is the writer's."""


def shard_columns(layout: Layout, kind: InputKind) -> dict[str, str]:
    """Types of the columns of a shard: of its windows and, in a feature shard, every statistic."""
    columns = {name: str(column) for name, column in WINDOW_FIELDS}
    if kind == "summary":
        columns |= dict.fromkeys(layout.input_names(kind), "float")
    return columns


# with checksums of pages, a flipped bit is an error on reading, not a wrong number
_PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True, "version": "2.6"}


def write_table(table: pa.Table, path: Path | BinaryIO) -> None:
    """A table as Parquet; see ``read_table``."""
    pq.write_table(table, path, **_PARQUET)


def write_parts(parts: Iterable[pa.Table], path: Path) -> None:
    """One table from parts with the same columns, each written as it comes; at least one."""
    parts = iter(parts)
    first = next(parts)
    with pq.ParquetWriter(path, first.schema, **_PARQUET) as file:
        file.write_table(first)
        for part in parts:
            file.write_table(part)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True, memory_map=True) as file:
        return file.read(columns=None if columns is None else list(columns))


@dataclass(frozen=True)
class EpisodeRows:
    """What one episode adds to shards."""

    windows: dict[str, Any]  # by column: (n_windows,), or one value for all; positions from 0
    series: NDArray[np.float32]  # (n_bins, n_channels)
    level: NDArray[np.float32]  # (n_windows, n_channels)
    inputs: NDArray[np.float32]  # (n_windows, n_inputs) as a feature shard has them


@dataclass(frozen=True)
class Place:
    """Where an episode is in its batch's shards."""

    shard: int
    first_bin: int
    bins: int
    first_row: int
    windows: int


def episode_rows(record: EpisodeRecord, extracted: Extracted) -> EpisodeRows:
    """The rows of one usable episode."""
    windows = extracted.windows
    n = len(windows)
    columns = (
        {name: getattr(record, name, None) for name in WINDOW_COLUMNS}
        | {
            "onset_s": extracted.onset_s,
            "window": np.arange(n),
            "start_s": windows.start_s,
            "label": windows.label,
            "purity": windows.purity.astype(np.float32),
            "job": extracted.jobs,
            "first_bin": windows.start_bin,
            "row": np.arange(n),
        }
        | {f"coverage_{s}": extracted.coverage[:, i] for i, s in enumerate(SOURCE_NAMES)}
    )
    return EpisodeRows(
        windows=columns,
        series=extracted.series,
        level=extracted.level,
        inputs=summary_inputs(extracted.features, extracted.baseline),
    )


class ShardWriter:
    """Writes both kinds of shard in one pass, holding one shard's table of windows.

    Args:
        first: number of the first shard.
    """

    def __init__(
        self, layout: Layout, tensor: NewFiles | None, feature: NewFiles | None, first: int = 0
    ):
        self._layout = layout
        self._tensor = tensor
        self._feature = feature
        self._next = first
        self._episodes = 0
        self._series: RowsFile | None = None
        self._level: RowsFile | None = None
        self._windows: list[dict[str, Any]] = []
        self._features: RowsFile | None = None
        self._finite_cells = np.zeros(len(layout.channels), dtype=np.int64)
        self._bins = self._rows = 0
        self.shards: list[dict[str, Any]] = []
        """What is in each finished shard: counts, and its number."""

    def add(self, rows: EpisodeRows) -> Place:
        """Append one usable episode."""
        if self._episodes == EPISODES_PER_SHARD:
            self.close()
        if not self._episodes:
            self._start_shard()
        place = Place(self._next, self._bins, len(rows.series), self._rows, len(rows.level))
        self._windows.append(
            rows.windows
            | {
                "shard": place.shard,
                "first_bin": rows.windows["first_bin"] + place.first_bin,
                "row": rows.windows["row"] + place.first_row,
            }
        )
        if self._series and self._level:
            self._series.append(rows.series)
            self._level.append(rows.level)
        if self._features:
            self._features.append(rows.inputs)
        self._episodes += 1
        self._bins += place.bins
        self._rows += place.windows
        self._finite_cells += np.count_nonzero(~np.isnan(rows.series), axis=0)
        return place

    def _start_shard(self) -> None:
        self._windows = []
        self._bins = self._rows = 0
        self._finite_cells = np.zeros_like(self._finite_cells)
        if self._tensor:
            self._series, self._level = (
                RowsFile(
                    self._tensor.new_file(f"{role}-{self._next:05}", ".npy"),
                    len(self._layout.channels),
                )
                for role in ("series", "level")
            )
        if self._feature:
            path = self._feature.new_file(f"features-{self._next:05}", ".npy")
            self._features = RowsFile(path, len(self._layout.input_names("summary")))

    def abandon(self) -> None:
        """Close the files of a shard that was not finished."""
        for file in (self._series, self._level, self._features):
            if file:
                file.abandon()

    def close(self) -> None:
        """Finish the shard being written."""
        if not self._episodes:
            return
        windows = _window_table(self._windows)
        table = BytesIO()
        write_table(windows, table)
        for file in (self._series, self._level, self._features):
            if file:
                file.close()
        for output in (self._tensor, self._feature):
            if output:
                path = output.new_file(f"windows-{self._next:05}", ".parquet")
                path.write_bytes(table.getbuffer())
        phases = Counter(windows.column("label").to_pylist())
        self.shards.append(
            {
                "number": self._next,
                "episodes": self._episodes,
                "bins": self._bins,
                "windows": self._rows,
                "windows_by_phase": {phase: phases[phase] for phase in self._layout.phases},
                "finite_cells": self._finite_cells.tolist(),
            }
        )
        self._episodes = 0
        self._next += 1


def _window_table(episodes: Sequence[dict[str, Any]]) -> pa.Table:
    """The windows of some episodes, in one piece: how they came to be in a shard does not show."""
    lengths = [len(episode["window"]) for episode in episodes]
    of_window = pa.array(np.repeat(np.arange(len(episodes)), lengths))
    columns = []
    for name, kind in WINDOW_FIELDS:
        values = [episode[name] for episode in episodes]
        if name in _PER_WINDOW:
            columns.append(pa.array(np.concatenate(values), kind))
        else:
            columns.append(pa.array(values, kind).take(of_window))
    return pa.Table.from_arrays(columns, schema=_WINDOW_SCHEMA)


def read_episodes(
    tensor: Files, feature: Files, shard: int, places: Sequence[Place]
) -> Iterator[EpisodeRows]:
    """Episodes of one shard as they were added to it, in the order of ``places``."""
    series, level, inputs = (
        np.lib.format.open_memmap(files.path(f"{role}-{shard:05}"), mode="r")
        for files, role in ((tensor, "series"), (tensor, "level"), (feature, "features"))
    )
    windows = read_table(tensor.path(f"windows-{shard:05}"))
    for place in places:
        rows = slice(place.first_row, place.first_row + place.windows)
        yield EpisodeRows(
            windows=_columns(windows.slice(place.first_row, place.windows), place),
            series=series[place.first_bin : place.first_bin + place.bins],
            level=level[rows],
            inputs=inputs[rows],
        )


def _columns(windows: pa.Table, place: Place) -> dict[str, Any]:
    """One episode's part of a shard's table, as ``episode_rows`` made it."""
    columns: dict[str, Any] = {name: windows.column(name).to_numpy() for name in _PER_WINDOW}
    first = windows.slice(0, 1).to_pylist()
    columns |= {n: first[0][n] if first else None for n in WINDOW_COLUMNS if n not in _PER_WINDOW}
    columns["first_bin"] = columns["first_bin"] - place.first_bin
    columns["row"] = columns["row"] - place.first_row
    return columns


class RowsFile:
    """A ``.npy`` of float32 rows, appended one by one; closing completes the header."""

    def __init__(self, path: Path, n_columns: int):
        self._file = path.open("wb")
        self._n_columns = n_columns
        self.n_rows = 0
        self._write_header()

    def append(self, rows: NDArray[np.float32]) -> None:
        self._file.write(np.ascontiguousarray(rows, dtype="<f4").data)
        self.n_rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _write_header(self) -> None:
        # NumPy pads the header so that a growing first axis never changes its length.
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.n_rows, self._n_columns)}
        np.lib.format.write_array_header_1_0(self._file, header)
