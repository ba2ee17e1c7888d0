"""Planted leaks: each is named by the check that is there for it, and a clean store names none.

Leaks of names (an episode, kin, a sample, a host, a session or a time on both sides) stop the build
of a dataset, see ``test_datasets``; what the schedule or the collectors give away is said by the
baselines, see ``test_scores``. Here are those that only the inputs show, in recorded episodes: the
made-up ones of other tests are told apart by any channel.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard
from builders import Members, StoreBuilder, edit_meta, ulid
from lab import once
from numpy.typing import NDArray

from config.paths import base_folder
from datasets.windows import inputs_of_kind, read_dataset
from episodes.format import PHASES
from evaluation import leaks
from evaluation.documents import Leak
from evaluation.leaks import MOST_WINDOWS, find_leaks, windows_to_check
from evaluation.wording import sentence
from features.registry import LAYOUT, STATS
from stages.datasets import dataset_shards, no_leak_found
from stages.project import Project
from stages.workspace import Workspace

RECIPE, PER_HOST = "host", 14
CHANNEL = "guest.load_1m"
NAMES = LAYOUT.channel_names
TWIN = ulid(1_795_000_000_000, 7)


@dataclass
class Recorded:
    """A dataset of recorded episodes, with all inputs of its windows."""

    project: Project
    table: pl.DataFrame
    X: NDArray[np.float32]

    @classmethod
    def of(cls, project: Project) -> Recorded:
        dataset = project.existing("datasets", RECIPE)
        table = windows_to_check(read_dataset(dataset))
        X = inputs_of_kind(table, dataset_shards(project, dataset), "summary", "oracle", LAYOUT)
        return cls(project, table, X[:])

    def leaks(self, X: NDArray[np.float32] | None = None) -> list[Leak]:
        channel = LAYOUT.channel_of("oracle", "summary")
        return find_leaks(self.table, self.X if X is None else X, channel, NAMES)


def store_of_recorded(root: Path) -> dict[str, list[str]]:
    """A store with the first episodes that three hosts sent; their ids by host."""
    source = base_folder() / "data" / "store"
    store, ids = StoreBuilder(root / "store"), dict[str, list[str]]()
    for line in (source / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        host, episode = row["host_id"], row["episode_id"]
        of_host = ids.setdefault(host, [])
        archive = source / "episodes" / host / f"{episode}.tar.zst"
        if host != "lab-e" and len(of_host) < PER_HOST and archive.is_file():
            of_host.append(episode)
            store.add(host, episode_id=episode, packed=archive.read_bytes(), index=row)
    return ids


def project_of(root: Path) -> Project:
    paths = {"store": str(root / "store"), "artifacts": str(root / "artifacts")}
    return Project(Workspace.model_validate(paths | {"splits": {"val_share": 0.34}}))


def made(root: Path) -> None:
    project = project_of(root)
    for batch in project.listing.batches:
        project.make(project.stages["ingest"], batch)
    project.make(project.stages["datasets"], RECIPE)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    def make(root: Path) -> None:
        store_of_recorded(root)
        made(root)

    return Recorded.of(project_of(once(tmp_path_factory, "recorded", make)))


def members_of(archive: Path) -> Members:
    content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive.read_bytes()))
    with tarfile.open(fileobj=content, mode="r|") as tar:
        return {Path(e.name).name: tar.extractfile(e).read() for e in tar if e.isfile()}  # type: ignore[union-attr]


def test_a_clean_store_names_none(recorded: Recorded) -> None:
    assert recorded.leaks() == []
    dataset = recorded.project.existing("datasets", RECIPE)
    assert no_leak_found(recorded.project, RECIPE, dataset).passed


def test_no_real_channel_comes_near_the_limits(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"TELLS_PHASE": 0.95, "TELLS_NAME": 0.85, "TELLS_TIME": 0.9, "SAME_EPISODE": 0.05}
    for name, limit in limits.items():
        monkeypatch.setattr(leaks, name, limit)
    assert recorded.leaks() == []


# --- channels that tell


def column_of(names: pl.Series) -> NDArray[np.float64]:
    """Numbers that stand for names, in no order."""
    return np.array([zlib.crc32(str(name).encode()) % 10_007 for name in names], dtype=np.float64)


def phase(table: pl.DataFrame) -> NDArray[np.float64]:
    return np.array([7 * PHASES.index(label) % 5 for label in table["label"]], dtype=np.float64)


def attack_flag(table: pl.DataFrame) -> NDArray[np.float64]:
    return table["label"].str.starts_with("infect").to_numpy().astype(np.float64)


def missing_when_clean(table: pl.DataFrame) -> NDArray[np.float64]:
    return np.where(table["label"] == "clean", np.nan, 1.0)


def episode(table: pl.DataFrame) -> NDArray[np.float64]:
    return column_of(table["episode_id"])


def noisy_episode(table: pl.DataFrame) -> NDArray[np.float64]:
    return episode(table) + np.random.default_rng(0).normal(0.0, 0.05, len(table))


def clock(table: pl.DataFrame) -> NDArray[np.float64]:
    began = table["started_at_wall_ns"].to_numpy()
    return (began - began.min()) / 1e9 + table["start_s"].to_numpy()


def position(table: pl.DataFrame) -> NDArray[np.float64]:
    return -table["start_s"].to_numpy() + np.random.default_rng(0).normal(0.0, 0.5, len(table))


def sample(table: pl.DataFrame) -> NDArray[np.float64]:
    return column_of(table["sample_sha256"]) + np.random.default_rng(0).normal(0, 0.01, len(table))


@pytest.mark.parametrize(
    ("value", "code", "what", "stat"),
    [
        (phase, "channel_tells_phase", PHASES, "mean"),
        (attack_flag, "channel_tells_phase", ("attack",), "p95"),
        (missing_when_clean, "channel_tells_phase", ("clean",), "mean"),
        (episode, "channel_tells_name", ("episode",), "mean"),
        (noisy_episode, "channel_tells_name", ("episode",), "p95"),
        (clock, "channel_tells_time", ("clock",), "mean"),
        (position, "channel_tells_time", ("episode",), "p95"),
        (sample, "channel_tells_name", ("sample",), "mean"),
    ],
)
def test_a_channel_that_tells_is_named(
    recorded: Recorded,
    value: Callable[[pl.DataFrame], NDArray[np.float64]],
    code: str,
    what: tuple[str, ...],
    stat: str,
) -> None:
    mine = np.flatnonzero(LAYOUT.channel_of("oracle", "summary") == NAMES.index(CHANNEL))
    planted = recorded.X.copy()
    planted[:, mine[STATS.index(stat)]] = value(recorded.table)
    found = recorded.leaks(planted)
    assert CHANNEL in {leak.about for leak in found}
    assert {(leak.code, leak.about) for leak in found if leak.what in what} == {(code, CHANNEL)}
    assert all(leak.about == CHANNEL for leak in found)
    assert CHANNEL in sentence(found[0])


# --- episodes that are there twice


def test_an_episode_under_two_ids_is_named(tmp_path: Path) -> None:
    ids = store_of_recorded(tmp_path)
    store = StoreBuilder.reopen(tmp_path / "store")
    for twin in ids["lab-a"]:
        members = members_of(store.path("lab-a", twin))
        if b"infected_running" in members["labels.jsonl"]:
            break
    members = edit_meta(members, {"episode_id": TWIN, "host_id": "lab-c"})
    store.add("lab-c", members, episode_id=TWIN)
    made(tmp_path)
    found = Recorded.of(project_of(tmp_path))
    sides = dict(found.table.select("episode_id", "split").unique().iter_rows())
    assert (sides[twin], sides[TWIN]) == ("train", "test")
    (leak,) = found.leaks()
    assert (leak.code, leak.about, leak.what) == ("episode_twice", TWIN, twin)
    assert leak.numbers["share"] == 1.0
    dataset = found.project.existing("datasets", RECIPE)
    result = no_leak_found(found.project, RECIPE, dataset)
    assert (result.passed, result.severity) == (False, "warn")
    assert result.facts["leaks"] == [sentence(leak)]


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_part_of_an_episode_is_enough(recorded: Recorded, noise: float) -> None:
    """A fifth of the windows of a tested episode, with some noise, are those of one of training."""
    split, of = recorded.table["split"].to_numpy(), recorded.table["episode_id"].to_numpy()
    trained, tested = of[split == "train"][0], of[split == "test"][0]
    source, target = np.flatnonzero(of == trained), np.flatnonzero(of == tested)
    n = len(target) // 5 + 1
    planted = recorded.X.copy()
    factor = np.random.default_rng(0).normal(1.0, noise, (n, planted.shape[1]))
    planted[target[:n]] = planted[source[:n]] * factor
    (leak,) = recorded.leaks(planted)
    assert (leak.code, leak.about, leak.what) == ("episode_twice", tested, trained)


def test_a_large_store_is_looked_at_in_whole_episodes_and_one_window_of_others() -> None:
    for n_episodes in (1_000, 5_000, 30_000):
        table = pl.DataFrame(
            {"episode_id": [f"E{i:06}" for i in range(n_episodes) for _ in range(12)],
             "window": list(range(12)) * n_episodes}
        )  # fmt: skip
        found = windows_to_check(table)
        assert len(found) <= MOST_WINDOWS or n_episodes == 1_000
        sizes = found.group_by("episode_id").agg(n=pl.len(), first=pl.col("window").min())
        assert set(sizes["n"]) == ({12} if n_episodes == 1_000 else {1, 12})
        assert sizes.filter(pl.col("n") == 12).height >= 800
        assert set(sizes.filter(pl.col("n") == 1)["first"]) <= {1}
        assert n_episodes > 10_000 or sizes.height == n_episodes


def test_an_episode_under_two_ids_is_named_in_a_large_store(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "MOST_WINDOWS", 2 * recorded.table["episode_id"].n_unique())
    table = recorded.table.with_row_index("at")
    split, of = table["split"].to_numpy(), table["episode_id"].to_numpy()
    trained, tested = of[split == "train"][-1], of[split == "test"][-1]
    planted = recorded.X.copy()
    n = min((of == trained).sum(), (of == tested).sum())
    planted[np.flatnonzero(of == tested)[:n]] = planted[np.flatnonzero(of == trained)[:n]]
    some = windows_to_check(table)
    assert len(some) < len(table)
    small = Recorded(recorded.project, some, planted[some["at"].to_numpy()])
    assert [(leak.code, leak.about) for leak in small.leaks()] == [("episode_twice", tested)]


def test_a_constant_follows_no_clock(recorded: Recorded) -> None:
    """However many windows begin at the same second."""
    table = recorded.table.filter(pl.col("window") == 1)
    X = np.zeros((len(table) * 60, recorded.X.shape[1]), dtype=np.float32)
    many = pl.concat([table] * 60)
    found = Recorded(recorded.project, many, X).leaks()
    assert "channel_tells_time" not in {leak.code for leak in found}


def test_what_is_too_little_is_not_judged(recorded: Recorded) -> None:
    few = recorded.table["episode_id"].unique().sort()[:3]
    keep = recorded.table["episode_id"].is_in(few.to_list()).to_numpy()
    small = Recorded(recorded.project, recorded.table.filter(pl.Series(keep)), recorded.X[keep])
    assert small.leaks(np.tile(phase(small.table)[:, None], (1, small.X.shape[1]))) == []
