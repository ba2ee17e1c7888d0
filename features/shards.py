"""Shards: the inputs of a batch's usable episodes on disk. ``features.loaders`` reads them.

A tensor shard is the 10 Hz series of up to 256 episodes, end to end, time-major, memory-mapped,
with a table of its windows and the baseline of each; a window is a view into it. A feature shard
is the same table and one row of statistics for each window, plain and relative, memory-mapped too:
float32 statistics do not compress. Splits are not known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.extraction import SOURCE_NAMES
from features.relative import summary_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from episodes.validation import Record
    from features.extraction import Extracted
    from features.registry import Layout


class NewFiles(Protocol):
    """Where to write the files of an artifact."""

    def new_file(self, role: str, suffix: str) -> Path: ...


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


def write_table(table: pa.Table, path: Path) -> None:
    """Parquet with page checksums: a flipped bit is an error on reading, not a wrong number."""
    pq.write_table(table, path, compression="zstd", write_page_checksum=True, version="2.6")


def write_parts(parts: Iterable[pa.Table], path: Path) -> None:
    """One table from parts with the same columns, each written as it comes; at least one."""
    parts = iter(parts)
    first = next(parts)
    with pq.ParquetWriter(
        path, first.schema, compression="zstd", write_page_checksum=True, version="2.6"
    ) as file:
        file.write_table(first)
        for part in parts:
            file.write_table(part)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True, memory_map=True) as file:
        return file.read(columns=None if columns is None else list(columns))


class ShardWriter:
    """Writes both kinds of shard in one pass, holding one shard's table of windows."""

    def __init__(self, layout: Layout, tensor: NewFiles | None, feature: NewFiles | None):
        self._layout = layout
        self._tensor = tensor
        self._feature = feature
        self._shard = -1
        self._episodes = 0
        self._bins = 0  # of the shard being written
        self._series: SeriesFile | None = None
        self._level: SeriesFile | None = None
        self._features: SeriesFile | None = None
        self._columns: dict[str, list[Any]] = {}
        self.n_windows = 0
        self.windows_by_phase = dict.fromkeys(layout.phases, 0)
        self.finite_cells = np.zeros(len(layout.channels), dtype=np.int64)
        self.n_bins = 0

    def add(self, record: Record, extracted: Extracted) -> None:
        """Append one usable episode."""
        if self._episodes == EPISODES_PER_SHARD:
            self.close()
        if not self._episodes:
            self._start_shard()
        windows = extracted.windows
        first_row = len(self._columns["row"])
        if self._series and self._level:
            self._series.append(extracted.series)
            self._level.append(extracted.level)
        per_episode = {
            name: [getattr(record, name)] * len(windows)
            for name in WINDOW_COLUMNS
            if hasattr(record, name)
        }
        per_window = {
            "window": range(len(windows)),
            "start_s": windows.start_s.tolist(),
            "label": windows.label.tolist(),
            "purity": windows.purity.tolist(),
            "job": extracted.jobs.tolist(),
            "onset_s": [extracted.onset_s] * len(windows),
            "shard": [self._shard] * len(windows),
            "first_bin": (self._bins + windows.start_bin).tolist(),
            "row": range(first_row, first_row + len(windows)),
        } | {f"coverage_{s}": extracted.coverage[:, i] for i, s in enumerate(SOURCE_NAMES)}
        for name, values in (per_episode | per_window).items():
            self._columns[name].extend(values)
        if self._features:
            self._features.append(summary_inputs(extracted.features, extracted.baseline))
        self._bins += len(extracted.series)
        self._episodes += 1
        self.n_windows += len(windows)
        self.n_bins += len(extracted.series)
        self.finite_cells += np.count_nonzero(~np.isnan(extracted.series), axis=0)
        for phase in windows.label:
            self.windows_by_phase[str(phase)] += 1

    def _start_shard(self) -> None:
        self._shard += 1
        self._bins = 0
        self._columns = {name: [] for name in WINDOW_COLUMNS}
        if self._tensor:
            self._series, self._level = (
                SeriesFile(
                    self._tensor.new_file(f"{role}-{self._shard:05}", ".npy"),
                    len(self._layout.channels),
                )
                for role in ("series", "level")
            )
        if self._feature:
            path = self._feature.new_file(f"features-{self._shard:05}", ".npy")
            self._features = SeriesFile(path, len(self._layout.input_names("summary")))

    def close(self) -> None:
        """Finish the shard being written."""
        if not self._episodes:
            return
        windows = pa.table(
            {name: pa.array(self._columns[name], kind) for name, kind in WINDOW_FIELDS}
        )
        if self._tensor and self._series and self._level:
            self._series.close()
            self._level.close()
            write_table(windows, self._tensor.new_file(f"windows-{self._shard:05}", ".parquet"))
        if self._feature and self._features:
            self._features.close()
            write_table(windows, self._feature.new_file(f"windows-{self._shard:05}", ".parquet"))
        self._episodes = 0


class SeriesFile:
    """A ``.npy`` of float32 rows, appended one by one; closing completes the header."""

    def __init__(self, path: Path, n_channels: int):
        self._file = path.open("wb")
        self._n_channels = n_channels
        self.n_rows = 0
        self._write_header()

    def append(self, rows: NDArray[np.float32]) -> None:
        self._file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self.n_rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        # NumPy pads the header so that a growing first axis never changes its length.
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.n_rows, self._n_channels)}
        np.lib.format.write_array_header_1_0(self._file, header)
