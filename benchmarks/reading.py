"""How fast windows are read from shards, at any number of them, and whether a net waits for them.

    python -m benchmarks.reading [--windows N] [--shards N,N,…]

Shards are written directly, from a fixed seed, and read from the page cache. Rates are per second
of processor time of one core, because others share the machine; compare the ratios. ``reopened`` is
what a loader costs that maps or reads the files again for every batch. ``--scale`` goes up to
10,000 shards.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

import models.trainer
from benchmarks.lines import paired, recording
from features.loaders import RowFiles, SummaryWindows, TensorWindows
from features.registry import LAYOUT, MODES, Mode
from features.relative import tensor_inputs
from features.shards import RowsFile, read_table, write_table
from models.base import Examples
from models.hyperparameters import CnnConfig, MlpConfig
from models.registry import Variant

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from benchmarks.lines import Recording
    from models.base import Inputs

N_CHANNELS = len(LAYOUT.channels)
STRIDE, LENGTH = LAYOUT.window.stride_bins, LAYOUT.window.n_bins
BATCH, BLOCK = 256, 512
ROUNDS = 3
WINDOWS_S, ROWS_S = 100_000, 10_000  # at least
REOPENED_AT_MOST = 120  # shards; beyond, it takes minutes


def batches(
    read: Callable[[NDArray[np.int64]], object], n: int, size: int, n_read: int
) -> Callable[[], object]:
    """Read ``n_read`` of ``n`` windows in random batches."""
    order = np.random.default_rng(1).permutation(n)[:n_read]

    def work() -> None:
        for start in range(0, len(order), size):
            read(order[start : start + size])

    return work


class Corpus:
    """Shards with equally many windows, of random values."""

    def __init__(self, root: Path, n_windows: int, n_shards: int):
        self.per_shard = max(1, n_windows // n_shards)
        self.n_shards = n_shards
        random = np.random.default_rng(0)
        wide = len(LAYOUT.input_names("summary"))
        series = random.lognormal(3, 3, (STRIDE * (self.per_shard + 1), N_CHANNELS))
        series[random.random(series.shape) < 0.05] = np.nan
        contents = {
            "series": series,
            "level": random.normal(0, 3, (self.per_shard, N_CHANNELS)),
            "features": random.lognormal(3, 3, (self.per_shard, wide)),
        }
        self.paths: dict[str, list[Path]] = {role: [] for role in contents}
        for number in range(n_shards):
            for role, rows in contents.items():
                path = root / f"{role}-{number:05}.npy"
                file = RowsFile(path, rows.shape[1])
                file.append(np.roll(rows, number, axis=0))
                file.close()
                self.paths[role].append(path)
        self.tables = [path.with_suffix(".parquet") for path in self.paths["features"]]
        if n_shards <= REOPENED_AT_MOST:
            names = LAYOUT.input_names("summary")
            for path, stored in zip(self.tables, self.paths["features"], strict=True):
                columns = np.lib.format.open_memmap(stored, mode="r").T
                write_table(pa.table(dict(zip(names, columns, strict=True))), path)
        self.shard = np.repeat(np.arange(n_shards), self.per_shard)
        self.row = np.tile(np.arange(self.per_shard), n_shards)

    def __len__(self) -> int:
        return len(self.shard)

    def files(self, role: str, width: int) -> RowFiles:
        return RowFiles(self.paths[role], width)

    def tensor(self, mode: Mode) -> TensorWindows:
        series, level = (self.files(role, N_CHANNELS) for role in ("series", "level"))
        keep = LAYOUT.keep_mask(mode, "tensor")
        first = STRIDE * self.row
        return TensorWindows(series, level, self.shard, first, self.row, keep, LENGTH)

    def summary(self, mode: Mode) -> SummaryWindows:
        keep = LAYOUT.keep_mask(mode, "summary")
        return SummaryWindows(self.files("features", len(keep)), self.shard, self.row, keep)

    def reopened_tensor(self, mode: Mode) -> Callable[[NDArray[np.int64]], object]:
        keep = LAYOUT.keep_mask(mode, "tensor")

        def read(index: NDArray[np.int64]) -> object:
            shard, row = self.shard[index], self.row[index]
            out = np.empty((len(index), LENGTH, keep.sum()), dtype=np.float32)
            for number in np.unique(shard):
                series, level = (
                    np.lib.format.open_memmap(self.paths[role][number], mode="r")
                    for role in ("series", "level")
                )
                here = np.flatnonzero(shard == number)
                bins = STRIDE * row[here, None] + np.arange(LENGTH)
                out[here] = tensor_inputs(series[bins], level[row[here]])[:, :, keep]
            return out

        return read

    def reopened_summary(self, mode: Mode) -> Callable[[NDArray[np.int64]], object]:
        keep = LAYOUT.keep_mask(mode, "summary")
        names = [n for n, kept in zip(LAYOUT.input_names("summary"), keep, strict=True) if kept]

        def read(index: NDArray[np.int64]) -> object:
            shard, row = self.shard[index], self.row[index]
            out = np.empty((len(index), len(names)), dtype=np.float32)
            for number in np.unique(shard):
                table = read_table(self.tables[number], names)
                here = np.flatnonzero(shard == number)
                for i, name in enumerate(names):
                    out[here, i] = table.column(name).to_numpy()[row[here]]
            return out

        return read

    def copied(self, mode: Mode) -> Callable[[NDArray[np.int64]], object]:
        """A plain copy of the bytes of a window, and of as many as it becomes."""
        windows = self.tensor(mode)
        maps = [np.lib.format.open_memmap(p, mode="r") for p in self.paths["series"][:500]]
        source = np.zeros((LENGTH, windows.shape[2]), dtype=np.float32)

        def read(index: NDArray[np.int64]) -> object:
            raw = np.empty((LENGTH, N_CHANNELS), dtype=np.float32)
            out = np.empty((len(index), LENGTH, windows.shape[2]), dtype=np.float32)
            for i, (shard, row) in enumerate(
                zip(self.shard[index].tolist(), self.row[index].tolist(), strict=True)
            ):
                raw[:] = maps[shard % len(maps)][STRIDE * row : STRIDE * row + LENGTH]
                out[i] = source
            return out

        return read


def logarithms(mode: Mode) -> Callable[[NDArray[np.int64]], object]:
    """The logarithms of the relative inputs alone, in a buffer that stays in the cache."""
    n = int(LAYOUT.keep_mask(mode, "tensor")[N_CHANNELS:].sum())
    values = np.random.default_rng(0).lognormal(3, 3, (LENGTH, n))
    out = np.empty_like(values)

    def read(index: NDArray[np.int64]) -> None:
        for _ in index:
            np.log1p(values, out=out)

    return read


def read_rates(out: Recording, n_windows: int, n_shards: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Corpus(Path(scratch), n_windows, n_shards)
        n, n_read = len(corpus), min(len(corpus), 4_096)
        for mode in MODES:
            tensor, summary = corpus.tensor(mode), corpus.summary(mode)
            for start in range(0, n, BATCH):  # into the page cache, and mapped
                tensor[start : start + BATCH], summary[start : start + BATCH]
            windows = {
                f"a plain copy, {mode}": batches(corpus.copied(mode), n, BATCH, n_read),
                f"their logarithms alone, {mode}": batches(logarithms(mode), n, BATCH, n_read),
            }
            rows, fewer = {}, {}
            if n_shards <= REOPENED_AT_MOST:
                few, name = 2 * BLOCK, f"reopened, {mode}"
                fewer[name] = few
                windows[name] = batches(corpus.reopened_tensor(mode), n, BATCH, few)
                rows[name] = batches(corpus.reopened_summary(mode), n, BLOCK, few)
            took = out.against(
                f"windows from {n_shards} shards",
                batches(tensor.__getitem__, n, BATCH, n_read), windows, n_read, "windows",
                rounds=ROUNDS, fewer=fewer,
            )  # fmt: skip
            cost = took[""] / n_read * 1e6
            out.point(
                "Reading windows at random", n_shards, "shards", cost, "CPU µs a window", mode
            )
            took = out.against(
                f"rows of statistics from {n_shards} shards, in 512",
                batches(summary.__getitem__, n, BLOCK, n_read), rows, n_read, "rows",
                rounds=ROUNDS, fewer=fewer,
            )  # fmt: skip
            cost = took[""] / n_read * 1e6
            out.point("Rows at random", n_shards, "shards", cost, "CPU µs a row", mode)
            limits = ((WINDOWS_S, tensor, BATCH, "windows"), (ROWS_S, summary, 16, "rows in 16"))
            for limit, loader, size, what in limits:
                each = median(
                    paired({"": batches(loader.__getitem__, n, size, n_read)}, ROUNDS)[""]
                )
                out.limit(
                    f"{what} from {n_shards} shards, {mode}", n_read / each, limit,
                    f"{what.split()[0]}/CPU s", "the floor", "more",
                )  # fmt: skip


def epoch_ratios(out: Recording, n_windows: int) -> None:
    """One epoch of a net whose inputs are in memory, and of the same net fed from its file."""
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Corpus(Path(scratch), n_windows, 120)
        y = np.random.default_rng(2).integers(0, 5, len(corpus))
        nets: dict[str, tuple[Inputs, MlpConfig | CnnConfig]] = {
            "mlp": (corpus.summary("realistic"), MlpConfig()),
            "cnn": (corpus.tensor("realistic"), CnnConfig()),
        }
        for name, (X, config) in nets.items():
            seconds: dict[str, list[float]] = {"memory": [], "file": []}
            for where in [*seconds] * ROUNDS:
                models.trainer.IN_MEMORY_BYTES = 2**31 if where == "memory" else 0
                seconds[where].append(epoch_s(name, config, Examples(X, y)))
            models.trainer.IN_MEMORY_BYTES = 2**31
            pairs = zip(seconds["memory"], seconds["file"], strict=True)
            out.limit(
                f"epoch of {name} from its file", median(a / b for a, b in pairs), 0.9,
                "of the speed", "of the speed from memory, median of rounds", "more",
            )  # fmt: skip


def epoch_s(name: str, config: MlpConfig | CnnConfig, examples: Examples) -> float:
    """Processor seconds of the second of two epochs."""
    ends: list[float] = []
    net = Variant(name, "realistic").spec.build(replace(config, epochs=2), 5, seed=0, device="cpu")
    net.fit(examples, progress=lambda *_: ends.append(time.process_time()))
    return ends[1] - ends[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=12_000)
    parser.add_argument("--shards", default="10,120")
    parser.add_argument("--scale", action="store_true", help="20,000 windows, up to 10,000 shards")
    asked = parser.parse_args()
    if asked.scale:
        asked.windows, asked.shards = 20_000, "10,120,1000,10000"
    torch.set_num_threads(1)
    with recording("reading") as out:
        for n_shards in map(int, asked.shards.split(",")):
            read_rates(out, asked.windows, n_shards)
        epoch_ratios(out, min(asked.windows, 3_000))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        out.limit("memory of reading", peak, 4, "GB")


if __name__ == "__main__":
    main()
