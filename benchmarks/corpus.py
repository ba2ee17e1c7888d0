"""A synthetic corpus as shards, written directly: the embedded episodes, scaled per channel.

No archive is packed or validated. Every episode is one of the embedded ones with its channels
multiplied by factors of its own, and its statistics, which are proportional to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import polars as pl

import features.shards
from datasets.windows import EXAMPLE_COLUMNS
from episodes.store import list_store
from episodes.validation import ValidationPolicy, validate
from features.extraction import Extracted, extract
from features.loaders import read_windows
from features.registry import LAYOUT, STATS
from features.relative import running_median
from features.shards import ShardWriter, episode_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from episodes.validation import EpisodeRecord

STORE = Path(__file__).resolve().parent.parent / "data" / "store"
_PROPORTIONAL = np.tile(np.array(STATS) != "zero_frac", len(LAYOUT.channels))
assert STATS[0] == "mean"
_SPREAD = 0.3  # standard deviation of the logarithm of a channel's factor


@dataclass(frozen=True)
class Folder:
    """The files of one artifact, by role."""

    root: Path

    def new_file(self, role: str, suffix: str) -> Path:
        return self.root / f"{role}{suffix}"

    def path(self, role: str) -> Path:
        suffix = ".parquet" if role.startswith("windows") else ".npy"
        return self.root / f"{role}{suffix}"

    def paths(self, kind: str) -> list[Path]:
        return sorted(path for path in self.root.iterdir() if kind in path.name)


def parents() -> list[tuple[EpisodeRecord, Extracted]]:
    """The usable embedded episodes."""
    found = []
    for stored in list_store(STORE).episodes:
        record, episode = validate(stored, ValidationPolicy(), LAYOUT.fields)
        if record.usable and episode is not None:
            found.append((record, extract(episode, LAYOUT)))
    return found


def children(seed: int) -> Iterator[tuple[EpisodeRecord, Extracted]]:
    """Episodes without end, each made from the next of the embedded ones."""
    known = parents()
    random = np.random.default_rng(seed)
    horizon = LAYOUT.window.horizon_windows
    number = 0
    while True:
        record, parent = known[number % len(known)]
        factors = np.exp(random.normal(0, _SPREAD, len(LAYOUT.channels))).astype(np.float32)
        series = parent.series * factors
        stats = parent.features * np.where(_PROPORTIONAL, np.repeat(factors, len(STATS)), 1)
        stats = stats.astype(np.float32)
        means = stats[:, :: len(STATS)]
        yield (
            replace(record, episode_id=f"{number:026}", host_id=f"host-{number % 12:02}"),
            replace(
                parent,
                series=series,
                features=stats,
                baseline=running_median(stats, horizon),
                level=running_median(means, horizon),
            ),
        )
        number += 1


def write_corpus(root: Path, n_windows: int, n_shards: int, seed: int = 0) -> None:
    """Write about ``n_windows`` windows to ``n_shards`` batches of one shard each."""
    episodes = children(seed)
    written = 0
    with mock.patch.object(features.shards, "EPISODES_PER_SHARD", 2**31):
        for number in range(n_shards):
            kinds = {kind: root / f"{number:05}" / kind for kind in KINDS}
            for folder in kinds.values():
                folder.mkdir(parents=True, exist_ok=True)
            tensor, feature = (Folder(folder) for folder in kinds.values())
            writer = ShardWriter(LAYOUT, tensor, feature)
            while written < n_windows * (number + 1) / n_shards:
                written += writer.add(episode_rows(*next(episodes))).windows
            writer.close()


KINDS = ("tensor_shards", "feature_shards")


def read_corpus(root: Path) -> tuple[pl.DataFrame, dict[str, dict[str, Folder]]]:
    """The table of all windows with ``batch`` and ``split``, and the shards by batch.

    Of ten batches, eight are trained on, one is for validation and one for the test.
    """
    tables, shards = [], {}
    for number, folder in enumerate(sorted(root.iterdir())):
        split = {8: "val", 9: "test"}.get(number % 10, "train")
        shards[folder.name] = {kind: Folder(folder / kind) for kind in KINDS}
        windows = read_windows(shards[folder.name]["tensor_shards"].paths("windows"))
        tables.append(
            pl.DataFrame(windows)
            .with_columns(batch=pl.lit(folder.name), split=pl.lit(split))
            .select(EXAMPLE_COLUMNS)
        )
    return pl.concat(tables), shards
