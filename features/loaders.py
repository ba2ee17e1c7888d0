"""Loaders: the windows of many shards as one lazy array. ``features.shards`` writes them.

A shard is mapped once and stays mapped, without a file descriptor, for every loader of the process.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import pyarrow as pa

from episodes.jit import jit, rows_at
from features.shards import WINDOW_FIELDS, read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MOST_MAPS = 24_000  # of one loader; Linux allows a process 65,530
RESIDENT_BYTES = 2**29
"""After so many bytes read, all loaders of the process hand their pages back: they stay in the page
cache, and the process does not hold them."""
_CHUNK = 8  # windows whose logarithms fit into the cache of a processor


def read_windows(paths: Sequence[Path]) -> pa.Table:
    """The table of a batch's windows (``WINDOW_COLUMNS``), from its ``windows`` files."""
    tables = [read_table(path) for path in paths]
    return pa.concat_tables(tables) if tables else pa.schema(WINDOW_FIELDS).empty_table()


class RowFiles:
    """Files of float32 rows (``.npy``), each mapped when it is first read, and kept.

    A map needs no file descriptor, so there may be more files than a process may open. Copies and
    unpickled objects map the files again.
    """

    def __init__(self, paths: Sequence[Path], width: int):
        """Take files with ``width`` columns; nothing is opened yet."""
        self.paths, self.width = tuple(paths), width
        self._address = np.zeros(len(self.paths), dtype=np.int64)  # 0: not mapped
        self._n_rows = np.zeros(len(self.paths), dtype=np.int64)
        self._maps: dict[int, NDArray[np.float32]] = {}
        self._touched = np.zeros(len(self.paths), dtype=bool)
        with _lock:
            _loaders.add(self)

    def __getstate__(self) -> tuple[tuple[Path, ...], int]:
        return self.paths, self.width

    def __setstate__(self, state: tuple[tuple[Path, ...], int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def stretches(
        self, file: NDArray[np.int64], first: NDArray[np.int64], length: int
    ) -> tuple[NDArray[np.int64], dict[int, NDArray[np.float32]]]:
        """Where ``length`` rows from ``first (n,)`` of files ``(n,)`` are in memory, ``(n,)``.

        Keep the second result for as long as the first is used: the maps.

        Raises:
            OSError: a file cannot be opened.
            ValueError: a file holds something else, or less than its header says.
            IndexError: a file does not have these rows.
        """
        with _lock:
            _count(4 * length * self.width * len(file))
            missing = np.unique(file[self._address[file] == 0])
            if len(self._maps) + len(missing) > MOST_MAPS:
                self._maps = {}
                self._address[:] = 0
                self._touched[:] = False
                missing = np.unique(file)
            for number in missing.tolist():
                rows = self._maps[number] = _mapped(self.paths[number], self.width)
                self._n_rows[number] = len(rows)
                self._address[number] = rows.ctypes.data
            self._touched[file] = True
            if len(file) and (first.min() < 0 or (first + length > self._n_rows[file]).any()):
                raise IndexError("a shard has fewer rows than its table says; ingest it again")
            return self._address[file] + 4 * self.width * first, self._maps

    def hand_back(self) -> None:
        """Let go of the pages that were read; they are found in the page cache again."""
        for number in np.flatnonzero(self._touched).tolist():
            address = int(self._address[number])
            begin = address // mmap.PAGESIZE * mmap.PAGESIZE
            end = address + self._maps[number].nbytes
            _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
        self._touched[:] = False


_libc = ctypes.CDLL(None)
_lock = Lock()  # of all loaders: whichever reads may have all hand back
_loaders: WeakSet[RowFiles] = WeakSet()
_read = [0]  # bytes, since pages were handed back


def _count(n_bytes: int) -> None:
    """Have all loaders hand back their pages before too many are read."""
    _read[0] += n_bytes
    if _read[0] > RESIDENT_BYTES and sys.platform == "linux":
        for loader in _loaders:
            loader.hand_back()
        _read[0] = n_bytes


def _mapped(path: Path, width: int) -> NDArray[np.float32]:
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{path}: must be an .npy of version 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
    if fortran_order or dtype != np.dtype("<f4") or len(shape) != 2 or shape[1] != width:
        raise ValueError(f"{path}: must hold rows of {width} float32, got {dtype} {shape}")
    n = shape[0] * width
    with pa.memory_map(str(path)) as source:  # unlike Python's own, it outlives its descriptor
        content = source.read_buffer()
    if content.size < begin + 4 * n:
        raise ValueError(f"{path}: must have {begin + 4 * n} bytes, got {content.size}")
    return np.frombuffer(content, "<f4", n, begin).reshape(shape)


@dataclass(frozen=True)
class TensorWindows:
    """Windows of many tensor shards as one lazy array ``(n_windows, n_timepoints, n_inputs)``."""

    series: RowFiles
    level: RowFiles
    shard: NDArray[np.int64]  # (n_windows,) position in the files
    first_bin: NDArray[np.int64]  # (n_windows,)
    row: NDArray[np.int64]  # (n_windows,)
    keep: NDArray[np.bool_]  # inputs kept, of ``Layout.input_names``
    n_timepoints: int

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.shard), self.n_timepoints, int(self.keep.sum())

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """Equal to ``features.relative.tensor_inputs`` of the windows, to the last bit."""
        shard, first_bin, row = self.shard[index], self.first_bin[index], self.row[index]
        if shard.ndim != 1:  # one window, or windows in several rows
            every = self[np.arange(len(self))[index].ravel()]
            return every.reshape(*shard.shape, *self.shape[1:])
        width = len(self.keep) // 2
        # unsigned: a kernel then need not ask whether an index counts from the end
        columns = (np.flatnonzero(self.keep) % width).astype(np.uint64)
        n_plain = np.uint64(self.keep[:width].sum())
        series, _series = self.series.stretches(shard, first_bin, self.n_timepoints)
        level, _level = self.level.stretches(shard, row, 1)
        out = np.empty((len(shard), *self.shape[1:]), dtype=np.float32)
        logs = np.empty((_CHUNK, self.n_timepoints, len(columns) - int(n_plain)))
        for start in range(0, len(shard), _CHUNK):
            part = slice(start, start + _CHUNK)
            chunk = out[part]
            some = logs[: len(chunk)]
            _gather(series[part], width, columns, n_plain, chunk, some)
            np.log1p(some, out=some)  # not in the kernel: NumPy's has other last bits, and is fast
            _make_relative(level[part], width, columns, n_plain, some, chunk)
        return out


@dataclass(frozen=True)
class SummaryWindows:
    """Rows of many feature shards as one lazy array ``(n_windows, n_inputs)``."""

    features: RowFiles
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    keep: NDArray[np.bool_]  # features kept, of ``Layout.input_names``

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.shard), int(self.keep.sum())

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        shard, row = self.shard[index], self.row[index]
        if shard.ndim != 1:  # one window, or windows in several rows
            every = self[np.arange(len(self))[index].ravel()]
            return every.reshape(*shard.shape, *self.shape[1:])
        rows, _maps = self.features.stretches(shard, row, 1)
        columns = np.flatnonzero(self.keep).astype(np.uint64)
        out = np.empty((len(shard), 1, len(columns)), dtype=np.float32)
        none = np.empty((len(shard), 1, 0))
        _gather(rows, len(self.keep), columns, np.uint64(len(columns)), out, none)
        return out[:, 0]


@jit
def _gather(address, width, columns, n_plain, out, logs):
    """Columns of windows to ``out``; of those after ``n_plain`` the sizes to ``logs``, too.

    A missing value has size 0: NumPy's logarithm takes three times as long where NaN is among the
    values.
    """
    n, n_timepoints, n_inputs = out.shape
    for i in range(n):
        window = rows_at(address[i], n_timepoints, width)
        for t in range(n_timepoints):
            values, there, sizes = window[t], out[i, t], logs[i, t]
            for j in range(n_inputs):
                there[j] = values[columns[j]]
            for j in range(n_inputs - n_plain):
                value = there[n_plain + np.uint64(j)]
                sizes[j] = 0.0 if np.isnan(value) else abs(np.float64(value))


@jit
def _make_relative(address, width, columns, n_plain, logs, out):
    """``features.relative`` in place, from the logarithms of the values' sizes."""
    n, n_timepoints, n_relative = logs.shape
    base = np.empty(n_relative, dtype=np.float32)
    for i in range(n):
        level = rows_at(address[i], 1, width)
        for j in range(n_relative):
            base[j] = level[0, columns[n_plain + np.uint64(j)]]
        for t in range(n_timepoints):
            there, sizes = out[i, t, n_plain:], logs[i, t]
            for j in range(n_relative):
                value = there[j]
                log = value if np.isnan(value) else np.copysign(np.float32(sizes[j]), value)
                there[j] = log - base[j]
