"""Loaders: the windows of many shards as one lazy array. ``features.shards`` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from features.relative import tensor_inputs
from features.shards import WINDOW_FIELDS, read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def read_windows(paths: Sequence[Path]) -> pa.Table:
    """The table of a batch's windows (``WINDOW_COLUMNS``), from its ``windows`` files."""
    tables = [read_table(path) for path in paths]
    return pa.concat_tables(tables) if tables else pa.schema(WINDOW_FIELDS).empty_table()


@dataclass(frozen=True)
class TensorWindows:
    """Windows of many tensor shards as one lazy array ``(n_windows, n_timepoints, n_inputs)``."""

    paths: tuple[tuple[Path, Path], ...]  # series and level of each shard
    shard: NDArray[np.int64]  # (n_windows,) position in ``paths``
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
        shard, first_bin, row = self.shard[index], self.first_bin[index], self.row[index]
        out = np.empty((len(shard), *self.shape[1:]), dtype=np.float32)
        for number in np.unique(shard):
            series, level = (np.lib.format.open_memmap(p, mode="r") for p in self.paths[number])
            rows = np.flatnonzero(shard == number)
            bins = first_bin[rows, None] + np.arange(self.n_timepoints)
            out[rows] = tensor_inputs(series[bins], level[row[rows]])[:, :, self.keep]
        return out


@dataclass(frozen=True)
class SummaryWindows:
    """Rows of many feature shards as one lazy array ``(n_windows, n_features)``."""

    paths: tuple[Path, ...]
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    names: tuple[str, ...]  # features kept

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.shard), len(self.names)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        shard, row = self.shard[index], self.row[index]
        out = np.empty((len(shard), len(self.names)), dtype=np.float32)
        for number in np.unique(shard):
            table = read_table(self.paths[number], self.names)
            rows = np.flatnonzero(shard == number)
            for i, name in enumerate(self.names):
                out[rows, i] = table.column(name).to_numpy()[row[rows]]
        return out
