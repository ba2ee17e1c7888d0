"""A batch on disk: shards give back what extraction gave, and nothing half-written shows."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from builders import (
    DAY_NS,
    START_NS,
    Members,
    StoreBuilder,
    edit_meta,
    edit_rows,
    make_members,
)

import episodes.environment
import features.loaders
import features.shards
import stages.batch
import stages.manifest
import stages.validating
from datasets.windows import examples, inputs
from episodes.environment import MachineError
from episodes.format import PHASES
from episodes.reading import read_episode
from episodes.store import StoredEpisode, list_store
from episodes.validation import ValidationPolicy, validate
from features.contract import contract_hashes
from features.extraction import Extracted, extract
from features.files import file_sha256, fingerprint, write_atomically
from features.loaders import RowFiles, SummaryWindows, TensorWindows, read_windows
from features.registry import LAYOUT, MODES, Mode
from features.relative import episode_inputs, tensor_inputs
from features.shards import (
    WINDOW_COLUMNS,
    RowsFile,
    read_table,
    write_parts,
    write_table,
)
from models.registry import VARIANTS, Variant
from stages.batch import (
    FEATURES,
    OUTPUTS,
    TENSORS,
    IngestedEpisode,
    batch_fingerprint,
    index_table,
    ingest_batch,
)
from stages.manifest import Manifest, draft, read_manifest

POLICY = ValidationPolicy()


def reusable(folder: Path, fingerprint: str) -> Manifest | None:
    """The artifact in a folder, if it has this fingerprint and is undamaged."""
    manifest = read_manifest(folder)
    same = manifest is not None and manifest.fingerprint == fingerprint
    return manifest if same and not manifest.damage() else None


DURATIONS_S = (20.0, 25.0, 30.0, 20.0, 40.0)


# --- one batch, built and ingested once


@dataclass(frozen=True)
class Batch:
    """Seven episodes of one host and day: five usable in three shards, one rejected, one absent."""

    episodes: tuple[StoredEpisode, ...]
    folder: Path
    manifests: dict[str, Manifest]
    extracted: dict[str, Extracted]  # by id, of the usable ones

    def windows(self) -> pl.DataFrame:
        table = pl.from_arrow(read_windows(self.manifests["tensor_shards"].paths("windows")))
        assert isinstance(table, pl.DataFrame)
        return table.with_columns(batch=pl.lit("b"))

    @property
    def shards(self) -> dict[str, dict[str, Manifest]]:
        return {"b": self.manifests}


def ingest(episodes: Any, folder: Path, policy: ValidationPolicy = POLICY) -> dict[str, Manifest]:
    """Ingest with two episodes a shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features.shards, "EPISODES_PER_SHARD", 2)
        return ingest_batch(episodes, folder, policy, LAYOUT)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    root = tmp_path_factory.mktemp("batch")
    store = StoreBuilder(root / "store")
    for number, duration_s in enumerate(DURATIONS_S):
        without = ("qmp",) if number == 1 else ()
        store.add(duration_s=duration_s, seed=number, without=without)
        if number == 2:
            store.add(duration_s=20.0, events=[])
            store.add(duration_s=20.0).path.unlink()
    [episodes] = list_store(store.root).batches.values()
    manifests = ingest(episodes, root / "out")
    verdicts = read_table(manifests["validation_index"].path("index")).to_pydict()
    usable = {
        episode_id
        for episode_id, verdict in zip(verdicts["episode_id"], verdicts["verdict"], strict=True)
        if verdict in ("accepted", "degraded")
    }
    extracted = {
        e.episode_id: extract(read_episode(e.path, e.episode_id, LAYOUT.fields), LAYOUT)
        for e in episodes
        if e.episode_id in usable
    }
    return Batch(episodes, root / "out", manifests, extracted)


def expected_inputs(batch: Batch, which: Variant) -> np.ndarray:
    """What extraction gives for all windows, in the order of the shards."""
    kind = which.spec.input_kind
    parts = [
        episode_inputs(kind, got.series, got.features, LAYOUT) for got in batch.extracted.values()
    ]
    return np.concatenate(parts)[..., LAYOUT.keep_mask(which.mode, kind)]


# --- what the shards hold


def test_every_episode_is_in_the_index_and_only_usable_ones_in_the_shards(batch: Batch):
    index = read_table(batch.manifests["validation_index"].path("index")).to_pylist()
    assert [row["episode_id"] for row in index] == [e.episode_id for e in batch.episodes]
    assert [row["verdict"] for row in index] == [
        "accepted", "degraded", "accepted", "rejected", "errored", "accepted", "accepted",
    ]  # fmt: skip
    usable = [row["episode_id"] for row in index if row["verdict"] in ("accepted", "degraded")]
    assert batch.windows()["episode_id"].unique(maintain_order=True).to_list() == usable
    facts = batch.manifests["validation_index"].facts
    assert facts["verdicts"] == {"accepted": 4, "degraded": 1, "rejected": 1, "errored": 1}
    assert facts["reasons"]["infection_without_event"] >= 1
    assert facts["reasons"]["listed_file_absent"] == facts["reasons"]["source_absent"] == 1


def test_the_window_table_says_what_extraction_said(batch: Batch):
    table = batch.windows()
    assert tuple(table.columns) == (*WINDOW_COLUMNS, "batch")
    records = {e.episode_id: validate(e, POLICY, LAYOUT.fields)[0] for e in batch.episodes}
    assert len(table) == sum(len(got.windows) for got in batch.extracted.values())
    for episode_id, got in batch.extracted.items():
        rows = table.filter(pl.col("episode_id") == episode_id)
        record = records[episode_id]
        assert rows["window"].to_list() == list(range(len(got.windows)))
        assert rows["label"].to_list() == got.windows.label.tolist()
        np.testing.assert_array_equal(rows["start_s"], got.windows.start_s)
        np.testing.assert_array_equal(rows["purity"], got.windows.purity.astype(np.float32))
        assert set(rows["onset_s"]) == {got.onset_s} != {None}
        for i, source in enumerate(("proc", "qmp", "guest", "netflow")):
            np.testing.assert_array_equal(rows[f"coverage_{source}"], got.coverage[:, i])
        for name in ("host_id", "sample_sha256", "sample_name", "profile", "verdict", "synthetic"):
            assert set(rows[name]) == {getattr(record, name)}
        for name in ("started_at_wall_ns", "ended_at_wall_ns"):
            assert set(rows[name]) == {getattr(record, name)}


def test_shards_are_cut_by_episodes(batch: Batch):
    by_shard = batch.windows().group_by("shard", maintain_order=True)
    assert by_shard.agg(pl.col("episode_id").n_unique())["episode_id"].to_list() == [2, 2, 1]
    assert sorted(batch.manifests["tensor_shards"].files) == [
        f"{role}-{shard:05}" for role in ("level", "series", "windows") for shard in range(3)
    ]
    assert sorted(batch.manifests["feature_shards"].files) == [
        f"{role}-{shard:05}" for role in ("features", "windows") for shard in range(3)
    ]


def test_a_series_is_stored_once_whole_and_plain(batch: Batch):
    stored = [
        np.load(batch.manifests["tensor_shards"].path(f"series-{shard:05}"), allow_pickle=False)
        for shard in range(3)
    ]
    expected = np.concatenate([got.series for got in batch.extracted.values()])
    np.testing.assert_array_equal(np.concatenate(stored), expected)
    assert expected.dtype == stored[0].dtype == np.dtype("<f4")


@pytest.mark.parametrize("which", VARIANTS, ids=lambda which: which.name)
def test_windows_are_those_of_extraction_in_any_order(which: Variant, batch: Batch):
    expected = expected_inputs(batch, which)
    windows = inputs(batch.windows(), batch.shards, which, LAYOUT)
    assert isinstance(
        windows, SummaryWindows if which.spec.input_kind == "summary" else TensorWindows
    )
    assert windows.shape == expected.shape
    assert len(windows) == len(expected)
    random = np.random.default_rng(0)
    indices = [
        slice(None),
        slice(3, 11),
        slice(None, None, -2),
        random.permutation(len(expected)),
        random.integers(0, len(expected), 40),
        random.random(len(expected)) < 0.5,
        np.array([], dtype=np.int64),
        [-1, 0],
        -1,
        np.array([[0, 1, 2], [5, 4, 3]]),
    ]
    for index in indices:
        got = windows[index]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected[index])
    np.testing.assert_array_equal(np.asarray(windows), expected)  # as any sequence


@pytest.mark.parametrize("which", VARIANTS, ids=lambda which: which.name)
def test_examples_are_the_windows_of_a_split_with_their_classes(which: Variant, batch: Batch):
    table = batch.windows().with_columns(
        split=pl.when(pl.int_range(pl.len()) % 3 == 0)
        .then(pl.lit("val"))
        .otherwise(pl.lit("train"))
    )
    shuffled = table.with_row_index("at").sample(fraction=1.0, shuffle=True, seed=1)
    got = examples(shuffled, batch.shards, "val", which, LAYOUT)
    here = shuffled.filter(pl.col("split") == "val")
    np.testing.assert_array_equal(got.X[:], expected_inputs(batch, which)[here["at"].to_numpy()])
    assert [PHASES[i] for i in got.y] == here["label"].to_list()


def test_windows_of_several_batches_are_told_apart(batch: Batch, tmp_path: Path):
    other = ingest(batch.episodes[-1:], tmp_path)
    there = pl.from_arrow(read_windows(other["tensor_shards"].paths("windows"))).with_columns(
        batch=pl.lit("a")
    )
    both = pl.concat([batch.windows(), there])
    shards = batch.shards | {"a": other}
    for which in VARIANTS:
        expected = expected_inputs(batch, which)
        last = expected[-len(there) :]  # the batch's last episode once more
        got = inputs(both, shards, which, LAYOUT)[:]
        np.testing.assert_array_equal(got, np.concatenate([expected, last]))


def test_the_facts_are_those_of_the_shards(batch: Batch):
    facts = batch.manifests["tensor_shards"].facts
    table = batch.windows()
    series = np.concatenate([got.series for got in batch.extracted.values()])
    assert facts["episodes"] == 5
    assert facts["windows"] == len(table)
    assert facts["bins"] == len(series)
    assert facts["windows_by_phase"] == {
        phase: int((table["label"] == phase).sum()) for phase in PHASES
    }
    for source, share in facts["coverage"].items():
        there = ~np.isnan(series[:, LAYOUT.columns(source)])
        assert share == pytest.approx(there.mean())
    assert facts["missing_channels"] == []
    assert facts["contract_hashes"] == contract_hashes(LAYOUT)
    assert facts["contract_hash"] == contract_hashes(LAYOUT)["tensor"]
    other = batch.manifests["feature_shards"].facts
    assert other == facts | {"contract_hash": contract_hashes(LAYOUT)["summary"]}


def test_a_channel_that_is_missing_everywhere_is_named(tmp_path: Path):
    store = StoreBuilder(tmp_path / "store")
    store.add(duration_s=20.0, without=("qmp",))
    facts = ingest(list_store(store.root).episodes, tmp_path / "out")["tensor_shards"].facts
    assert facts["missing_channels"] == [n for n in LAYOUT.channel_names if n.startswith("qmp.")]
    assert facts["coverage"]["qmp"] == 0.0


def test_progress_counts_episodes_and_ends_with_the_verdicts(batch: Batch, tmp_path: Path):
    calls: list[tuple[int, int, str]] = []
    ingest_batch(
        batch.episodes, tmp_path, POLICY, LAYOUT, outputs=["validation_index"],
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert [done for done, _, _ in calls] == list(range(8))
    assert {total for _, total, _ in calls} == {7}
    assert calls[-1][2] == "4 accepted + 1 degraded + 1 rejected + 1 errored = 7"


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_stage_alone_gives_what_it_gives_among_all(stage: str, batch: Batch, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features.shards, "EPISODES_PER_SHARD", 2)
        got = ingest_batch(batch.episodes, tmp_path, POLICY, LAYOUT, outputs=[stage])
    assert list(got) == [path.name for path in tmp_path.iterdir()] == [stage]
    assert got[stage].version == batch.manifests[stage].version


# --- batches without a usable episode


def test_the_index_has_the_same_columns_and_types_whatever_the_episodes(batch: Batch):
    entries = [IngestedEpisode(validate(e, POLICY, LAYOUT.fields)[0], "") for e in batch.episodes]
    whole = index_table(entries)
    assert len(whole) == 7
    for entry in entries:
        assert index_table([entry]).schema == whole.schema
    assert pa.null() not in whole.schema.types


def test_a_batch_without_a_usable_episode_is_an_empty_artefact(batch: Batch, tmp_path: Path):
    manifests = ingest(batch.episodes[3:5], tmp_path)
    assert manifests["tensor_shards"].files == manifests["feature_shards"].files == {}
    facts = manifests["tensor_shards"].facts
    assert facts["episodes"] == facts["windows"] == facts["bins"] == 0
    assert facts["missing_channels"] == []
    assert set(facts["coverage"].values()) == {0.0}
    windows = read_windows(manifests["tensor_shards"].paths("windows"))
    assert len(windows) == 0
    assert windows.schema == read_windows(batch.manifests["tensor_shards"].paths("windows")).schema


def stops_early() -> Members:
    """20 s by its meta, 9 s by its telemetry: degraded, and without a whole window."""
    return make_members(
        duration_s=20.0, drop={name: [(9.0, 99.0)] for name in ("proc", "qmp", "guest")}
    )


def lasts_two_days() -> Members:
    """Nothing but netflow, whose last row is two days later: no grid is laid over so much."""

    def wait(rows: list[dict[str, Any]]) -> None:
        rows[-1]["t_wall_ns"] += 2 * DAY_NS

    members = make_members(duration_s=30.0, without=("proc", "qmp", "guest"), seed=3)
    members = edit_meta(members, {"ended_at_wall_ns": START_NS + 3 * DAY_NS})
    return edit_rows(members, "netflow.jsonl", wait)


@pytest.mark.parametrize("make", [stops_early, lasts_two_days])
def test_an_episode_without_a_window_does_not_stop_the_batch(
    make: Callable[[], Members], tmp_path: Path
):
    store = StoreBuilder(tmp_path / "store")
    store.add(members=make())
    store.add(duration_s=20.0)
    odd, good = list_store(store.root).episodes
    patient = ValidationPolicy(max_duration_s=4 * 86_400)
    manifests = ingest([odd, good], tmp_path / "out", patient)
    assert len(read_table(manifests["validation_index"].path("index"))) == 2
    windows = pl.from_arrow(read_windows(manifests["tensor_shards"].paths("windows")))
    assert set(windows["episode_id"]) == {good.episode_id}
    expected = extract(read_episode(good.path, good.episode_id, LAYOUT.fields), LAYOUT)
    of_batch = windows.with_columns(batch=pl.lit("b"))
    tensor = inputs(of_batch, {"b": manifests}, Variant("cnn", "oracle"), LAYOUT)
    kept = LAYOUT.keep_mask("oracle", "tensor")
    np.testing.assert_array_equal(
        tensor[:], episode_inputs("tensor", expected.series, expected.features, LAYOUT)[..., kept]
    )
    summary = inputs(of_batch, {"b": manifests}, Variant("gbt", "oracle"), LAYOUT)
    kept = LAYOUT.keep_mask("oracle", "summary")
    np.testing.assert_array_equal(
        summary[:], episode_inputs("summary", expected.series, expected.features, LAYOUT)[:, kept]
    )


# --- identity


def test_equal_episodes_give_equal_bytes(batch: Batch, tmp_path: Path):
    ingest(batch.episodes, tmp_path)
    there, here = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path, batch.folder)
    )
    assert there == here
    assert len(here) == 3 + 1 + 9 + 6


def test_the_fingerprint_is_independent_of_times_and_places(tmp_path: Path):
    store = StoreBuilder(tmp_path / "store")
    added = store.add(duration_s=20.0)
    [before] = list_store(store.root).episodes
    os.utime(added.path, ns=(1, 1))
    [after] = list_store(store.root).episodes
    moved = store.root.rename(tmp_path / "moved")
    [elsewhere] = list_store(moved).episodes
    assert len({batch_fingerprint([e], POLICY, LAYOUT) for e in (before, after, elsewhere)}) == 1


def row(stored: StoredEpisode, **changes: Any) -> StoredEpisode:
    return stored._replace(index_rows=(stored.index_rows[0]._replace(**changes),))


CHANGES: dict[str, Callable[[StoredEpisode], StoredEpisode]] = {
    "size": lambda e: e._replace(size_bytes=e.size_bytes + 1),
    "gone": lambda e: e._replace(size_bytes=None),
    "hash": lambda e: row(e, sha256="0" * 64),
    "received": lambda e: row(e, received_at_wall="2026-11-03T09:00:00.000Z"),
    "unindexed": lambda e: e._replace(index_rows=()),
    "indexed twice": lambda e: e._replace(index_rows=e.index_rows * 2),
    "other host": lambda e: e._replace(other_hosts=("lab-b",)),
}


def test_the_fingerprint_changes_with_everything_a_batch_is_made_from(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    head, *rest = batch.episodes
    found = {"as it is": batch_fingerprint([head, *rest], POLICY, LAYOUT)}
    for name, change in CHANGES.items():
        found[name] = batch_fingerprint([change(head), *rest], POLICY, LAYOUT)
    found["fewer"] = batch_fingerprint(rest, POLICY, LAYOUT)
    found["policy"] = batch_fingerprint([head, *rest], replace(POLICY, min_rows=99), LAYOUT)
    for name, layout in {
        "unit": replace(
            LAYOUT, channels=(replace(LAYOUT.channels[0], unit="x"), *LAYOUT.channels[1:])
        ),
        "stats": replace(LAYOUT, stats=LAYOUT.stats[:-1]),
        "window": replace(LAYOUT, window=replace(LAYOUT.window, max_age_ms=500)),
    }.items():
        found[name] = batch_fingerprint([head, *rest], POLICY, layout)
    monkeypatch.setattr(stages.batch, "VERSION", "another")
    found["code"] = batch_fingerprint([head, *rest], POLICY, LAYOUT)
    assert len(set(found.values())) == len(found)


def test_the_version_follows_content_not_only_inputs(batch: Batch):
    manifest = batch.manifests["tensor_shards"]
    role, file = next(iter(manifest.files.items()))
    other = replace(manifest, files=manifest.files | {role: file | {"sha256": "0" * 64}})
    assert other.version != manifest.version
    assert replace(manifest, fingerprint="x").version != manifest.version
    assert replace(manifest, folder=Path("elsewhere")).version == manifest.version


def test_fingerprints_forget_the_order_of_keys_and_refuse_nan():
    assert fingerprint({"a": 1, "b": 2.5}) == fingerprint({"b": 2.5, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    with pytest.raises(ValueError):
        fingerprint(float("nan"))


# --- manifests, damage, kills


def write(folder: Path, content: bytes, identity: str = "i") -> Manifest:
    with draft(folder) as staged:
        staged.new_file("data", ".bin").write_bytes(content)
        return staged.commit(identity, {"n": len(content)})


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_manifest_tells_every_file_by_its_hash(batch: Batch):
    for stage, manifest in batch.manifests.items():
        assert read_manifest(batch.folder / stage) == manifest
        assert manifest.damage() is None
        assert names_in(manifest.folder) == {
            "manifest.json",
            *(file["name"] for file in manifest.files.values()),
        }
        assert manifest.n_bytes == sum(manifest.path(r).stat().st_size for r in manifest.files)
        for role, file in manifest.files.items():
            assert file["sha256"] == file_sha256(manifest.path(role))
            assert file["name"].startswith(f"{role}.{file['sha256'][:12]}.")


@pytest.mark.parametrize("position", [0, 150, -1])
def test_a_flipped_bit_is_found(position: int, tmp_path: Path):
    manifest = write(tmp_path, bytes(300))
    content = bytearray(300)
    content[position] ^= 1
    manifest.path("data").write_bytes(content)
    assert manifest.damage() == f"{manifest.place('data')} was changed after it was written"
    assert reusable(tmp_path, "i") is None


def test_a_file_that_is_gone_is_found(tmp_path: Path):
    manifest = write(tmp_path, b"x")
    manifest.path("data").unlink()
    assert manifest.damage() == f"{manifest.place('data')} is gone"
    assert reusable(tmp_path, "i") is None


def test_an_artefact_is_reused_for_equal_inputs_only(tmp_path: Path):
    assert reusable(tmp_path, "i") is None
    manifest = write(tmp_path, b"x")
    assert reusable(tmp_path, "i") == manifest
    assert reusable(tmp_path, "other") is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '{"fingerprint": "i"}', '{"fingerprint": "i", "files": []}'],
)
def test_a_manifest_that_cannot_be_read_is_none(text: str, tmp_path: Path):
    write(tmp_path, b"x")
    (tmp_path / "manifest.json").write_text(text)
    assert read_manifest(tmp_path) is None
    assert reusable(tmp_path, "i") is None


@pytest.mark.parametrize(
    "files", [[], {"data": {}}, {"data": None}, "x", {"data": {"name": 3, "sha256": "x"}}]
)
def test_a_manifest_of_another_shape_is_not_reused(files: object, tmp_path: Path):
    write(tmp_path, b"x")
    text = json.dumps({"fingerprint": "i", "files": files, "facts": {}})
    (tmp_path / "manifest.json").write_text(text)
    assert reusable(tmp_path, "i") is None


def test_a_new_state_replaces_the_old_one_whole(tmp_path: Path):
    old = write(tmp_path, b"old").path("data")
    new = write(tmp_path, b"new", "j")
    assert not old.exists()
    assert names_in(tmp_path) == {"manifest.json", new.path("data").name}
    assert write(tmp_path, b"new", "k").damage() is None  # equal content, equal name


@pytest.mark.parametrize(("age_s", "hashed"), [(1, 1), (-3600, 2)])  # a clock may be wrong
def test_what_was_written_before_it_was_put_in_place_is_not_hashed_again(
    age_s: int, hashed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Path] = []
    monkeypatch.setattr(stages.manifest, "settled", lambda _: False)  # it was changed just now
    monkeypatch.setattr(
        stages.manifest, "file_sha256", lambda path: (seen.append(path), file_sha256(path))[1]
    )
    with draft(tmp_path) as staged:
        path = staged.new_file("data", ".bin")
        path.write_bytes(b"content")
        os.utime(path, (time.time() - age_s,) * 2)
        manifest = staged.commit("i", {})
    assert manifest.damage() is None
    assert len(seen) == hashed
    manifest.place("data").write_bytes(b"CONTENT")
    assert manifest.damage()


@pytest.mark.parametrize("step", ["before", "file_sha256", "write_atomically"])
def test_a_kill_before_the_manifest_leaves_the_old_state(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    old = write(tmp_path, b"old")
    if step != "before":
        monkeypatch.setattr(stages.manifest, step, killed)
    with pytest.raises(KeyboardInterrupt), draft(tmp_path) as staged:  # noqa: PT012
        staged.new_file("data", ".bin").write_bytes(b"new")
        if step == "before":
            killed()
        staged.commit("j", {})
    monkeypatch.undo()
    assert read_manifest(tmp_path) == old
    assert old.damage() is None
    assert not [name for name in names_in(tmp_path) if name.startswith(".tmp")]


def test_a_kill_while_ingesting_leaves_the_old_state(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old = ingest(batch.episodes[:1], tmp_path)

    def killed(stored: StoredEpisode, *rest: Any) -> Any:
        if stored == batch.episodes[2]:
            raise KeyboardInterrupt
        return validate(stored, *rest)

    monkeypatch.setattr(stages.validating, "validate", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(batch.episodes, tmp_path)
    identity = batch_fingerprint(batch.episodes[:1], POLICY, LAYOUT)
    for stage, manifest in old.items():
        assert reusable(tmp_path / stage, identity) == manifest
        assert not [name for name in names_in(tmp_path / stage) if name.startswith(".tmp")]


@pytest.mark.parametrize("step", ["validate", "extract", "write_table"])
def test_what_the_machine_did_fails_the_batch_and_leaves_the_old_state(
    step: str, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old = ingest(batch.episodes[:1], tmp_path)

    def full(*_: Any) -> None:
        raise MachineError("planted") if step == "validate" else OSError(28, "No space left")

    monkeypatch.setattr(episodes.environment, "PAUSES_S", (0,))
    where = stages.batch if step == "write_table" else stages.validating
    monkeypatch.setattr(where, step, full)
    with pytest.raises((MachineError, OSError)):
        ingest(batch.episodes, tmp_path)
    identity = batch_fingerprint(batch.episodes[:1], POLICY, LAYOUT)
    for stage, manifest in old.items():
        assert reusable(tmp_path / stage, identity) == manifest
        assert not [name for name in names_in(tmp_path / stage) if name.startswith(".tmp")]


def test_windows_carry_their_job_and_the_image(tmp_path: Path):
    def mark(rows: list[dict[str, Any]]) -> None:
        for seconds, mark in ((3, "start"), (8, "end")):
            at = {"t_mono_ns": seconds, "t_wall_ns": START_NS + seconds * 10**9}
            rows.append(at | {"event": f"benign_job_{mark}", "job": "backup"})

    members = edit_rows(make_members(duration_s=20.0), "events.jsonl", mark)
    store = StoreBuilder(tmp_path / "store")
    store.add(members=edit_meta(members, {"vm.image_sha256": "AB"}))
    manifests = ingest(list_store(store.root).episodes, tmp_path / "out")
    for output in (TENSORS, FEATURES):
        (path,) = manifests[output].paths("windows")
        rows = read_table(path, ["job", "image_sha256"])
        assert rows.to_pydict() == {"job": ["backup", "backup", ""], "image_sha256": ["ab"] * 3}
        assert rows.schema.field("job").type == pa.string()


def test_a_kill_between_stages_shows_in_their_fingerprints(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(draft: stages.manifest.Draft, *rest: Any) -> Manifest:
        if draft._folder.name == "feature_shards":
            raise KeyboardInterrupt
        return real(draft, *rest)

    ingest(batch.episodes[:1], tmp_path)
    real = stages.manifest.Draft.commit
    monkeypatch.setattr(stages.manifest.Draft, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(batch.episodes[:2], tmp_path)
    identity = batch_fingerprint(batch.episodes[:2], POLICY, LAYOUT)
    current = {stage: reusable(tmp_path / stage, identity) is not None for stage in OUTPUTS}
    assert current == {"validation_index": True, "tensor_shards": True, "feature_shards": False}


def test_what_a_killed_commit_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def commit(text: str) -> Manifest:
        with stages.manifest.draft(tmp_path) as staged:
            staged.new_file("windows", ".txt").write_text(text)
            return staged.commit(text, {})

    def killed(_: Manifest) -> Manifest:
        raise KeyboardInterrupt

    (tmp_path / "notes.txt").touch()  # somebody's own
    with monkeypatch.context() as patch:
        patch.setattr(stages.manifest, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            commit("one")
    assert len(list(tmp_path.glob("windows.*"))) == 1
    made = commit("two")
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json", "notes.txt", made.path("windows").name,
    }  # fmt: skip


def test_an_atomic_write_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == {"file"}
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("lacks", ["fsync", "chmod"])
def test_a_file_system_without_fsync_or_chmod_will_do(
    lacks: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, lacks, refuse)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert write(tmp_path / "folder", b"new").damage() is None


# --- files


@pytest.mark.parametrize("lengths", [[], [1], [3, 0, 100_000], [9] * 12])
def test_a_series_file_is_a_valid_npy(lengths: list[int], tmp_path: Path):
    path = tmp_path / "series.npy"
    rows = [np.full((n, 3), i, dtype=np.float32) for i, n in enumerate(lengths)]
    file = RowsFile(path, 3)
    for part in rows:
        file.append(part)
    file.close()
    stored = np.load(path, allow_pickle=False)
    np.testing.assert_array_equal(stored, np.concatenate([np.empty((0, 3)), *rows]))
    assert stored.dtype == np.float32
    assert file.n_rows == len(stored)


def test_a_series_file_takes_any_float_array(tmp_path: Path):
    file = RowsFile(tmp_path / "s.npy", 3)
    rows = np.arange(12, dtype=np.float64).reshape(3, 4).T
    file.append(rows)
    file.close()
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), rows)


def test_a_flipped_bit_in_a_table_is_an_error_not_a_number(tmp_path: Path):
    path = tmp_path / "t.parquet"
    write_table(pa.table({"x": np.random.default_rng(0).random(1000)}), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError):
        read_table(path)


def test_a_table_in_parts_is_one_table(tmp_path: Path):
    parts = [pa.table({"a": [i, i + 1], "b": ["x", str(i)]}) for i in range(3)]
    write_parts(iter(parts), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").equals(pa.concat_tables(parts))
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[8] ^= 1
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(OSError):
        read_table(tmp_path / "t.parquet")


def test_a_table_reads_by_columns(tmp_path: Path):
    write_table(pa.table({"a": [1], "b": [2], "c": [3]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ["c", "a"]).to_pydict() == {"c": [3], "a": [1]}


# --- a batch that grows


def content(manifests: dict[str, Manifest]) -> pl.DataFrame:
    """Every window of a batch with all that its shards hold of it, whatever shard it is in."""
    tensors, features_ = manifests[TENSORS], manifests[FEATURES]
    parts = []
    for shard in tensors.facts["shards"]:
        number = shard["number"]
        windows = read_table(tensors.path(f"windows-{number:05}"))
        series, level = (
            np.load(tensors.path(f"{role}-{number:05}")) for role in ("series", "level")
        )
        inputs_ = np.load(features_.path(f"features-{number:05}"))
        assert read_table(features_.path(f"windows-{number:05}")).equals(windows)
        assert len(inputs_) == shard["windows"] == len(windows) == len(level)
        assert shard["bins"] == len(series)
        assert set(windows["shard"].to_pylist()) <= {number}
        spans = windows["first_bin"].to_numpy()[:, None] + np.arange(LAYOUT.window.n_bins)
        row = windows["row"].to_numpy()
        arrays = {"series": series[spans], "level": level[row], "inputs": inputs_[row]}
        parts.append(
            pl.DataFrame(windows).with_columns(
                pl.Series(name, [each.tobytes() for each in array], dtype=pl.Binary)
                for name, array in arrays.items()
            )
        )
    whole = pl.concat(parts) if parts else pl.DataFrame({"episode_id": [], "window": []})
    return whole.drop("shard", "first_bin", "row", strict=False).sort("episode_id", "window")


def verdicts(manifests: dict[str, Manifest]) -> pl.DataFrame:
    index = pl.DataFrame(read_table(manifests["validation_index"].path("index")))
    return index.drop("shard", "first_bin", "bins", "first_row")


def same_as_at_once(manifests: dict[str, Manifest], episodes: Any, folder: Path) -> None:
    at_once = ingest(episodes, folder)
    assert content(manifests).equals(content(at_once), null_equal=True)
    assert verdicts(manifests).equals(verdicts(at_once), null_equal=True)
    for name, manifest in manifests.items():
        facts, expected = dict(manifest.facts), dict(at_once[name].facts)
        del facts["shards"], expected["shards"]
        assert (manifest.fingerprint, facts) == (at_once[name].fingerprint, expected)
        assert manifest.damage() is None
        names = {file["name"] for file in manifest.files.values()} | {"manifest.json"}
        assert {path.name for path in manifest.folder.iterdir()} == names


def validated_ids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the episodes that are validated from now on."""
    ids: list[str] = []
    real = stages.batch.validate_and_extract

    def spy(stored: StoredEpisode, *given: Any) -> Any:
        ids.append(stored.episode_id)
        return real(stored, *given)

    monkeypatch.setattr(stages.batch, "validate_and_extract", spy)
    return ids


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_that_grew_is_what_it_would_be_at_once(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
):
    """Episodes come, go and change in any order; each is validated once as it is."""
    validated = validated_ids(monkeypatch)
    chance = random.Random(seed)
    here: dict[str, StoredEpisode] = {}
    before: dict[str, StoredEpisode] = {}
    seen: set[str] = set()
    for number in range(8):
        for episode in chance.sample(batch.episodes, chance.randrange(1, 4)):
            change = chance.choice(("come", "come", "go", "change"))
            if change == "go":
                here.pop(episode.episode_id, None)
            else:
                hosts = (f"lab-{chance.randrange(100)}",) if change == "change" else ()
                here[episode.episode_id] = episode._replace(other_hosts=hosts)
        if not here:
            continue
        episodes = [here[key] for key in sorted(here)]
        validated.clear()
        manifests = ingest(episodes, tmp_path / "grown")
        expected = [e.episode_id for e in episodes if before.get(e.episode_id) != e]
        assert validated == expected
        seen |= set(validated)
        before = dict(here)
        same_as_at_once(manifests, episodes, tmp_path / f"once-{number}")
    assert len(seen) > 4


def test_a_batch_that_grows_by_single_episodes_has_few_shards(tmp_path: Path):
    store = StoreBuilder(tmp_path / "store")
    for _ in range(20):
        store.add(duration_s=20.0)
    episodes = list_store(store.root).episodes
    sizes = []
    for n in range(1, len(episodes) + 1):
        manifests = ingest_batch(episodes[:n], tmp_path / "out", POLICY, LAYOUT)
        sizes.append([shard["episodes"] for shard in manifests[TENSORS].facts["shards"]])
    assert [sum(each) for each in sizes] == list(range(1, 21))
    assert max(map(len, sizes)) <= 5


def test_an_episode_in_a_damaged_shard_is_judged_again(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    manifests = ingest(batch.episodes[:5], tmp_path)
    path = manifests[TENSORS].path("series-00000")
    content_ = bytearray(path.read_bytes())
    content_[-1] ^= 1
    path.write_bytes(content_)
    validated = validated_ids(monkeypatch)
    manifests = ingest(batch.episodes, tmp_path)
    assert validated == [episode.episode_id for episode in batch.episodes]
    same_as_at_once(manifests, batch.episodes, tmp_path / "once")


def test_outputs_of_different_passes_are_not_used_together(batch: Batch, tmp_path: Path):
    ingest_batch(batch.episodes[:2], tmp_path, POLICY, LAYOUT)
    grown = ingest_batch(batch.episodes[:3], tmp_path, POLICY, LAYOUT)
    assert not stages.batch.outputs_differ(list(grown.values()))
    alone = ingest_batch(batch.episodes[:3], tmp_path, POLICY, LAYOUT, outputs=[TENSORS])
    assert alone[TENSORS].fingerprint == grown[FEATURES].fingerprint
    assert stages.batch.outputs_differ([alone[TENSORS], grown[FEATURES]])


# --- loaders


def shards_on_disk(folder: Path, n_shards: int, n_windows: int = 3) -> tuple[RowFiles, RowFiles]:
    """Series and levels of shards with ``n_windows`` windows each, all of other values."""
    random = np.random.default_rng(n_shards)
    paths: dict[str, list[Path]] = {"series": [], "level": []}
    for number in range(n_shards):
        for role, n_rows in (("series", 50 * (n_windows + 1)), ("level", n_windows)):
            rows = random.normal(0, 1e4, (n_rows, 46)).astype(np.float32)
            rows[random.random(rows.shape) < 0.2] = np.nan
            rows[random.random(rows.shape) < 0.2] = 0.0
            paths[role].append(folder / f"{role}-{number:05}.npy")
            np.save(paths[role][-1], rows)
    return RowFiles(paths["series"], 46), RowFiles(paths["level"], 46)


def all_windows(series: RowFiles, level: RowFiles, mode: Mode, n_windows: int = 3) -> TensorWindows:
    shard = np.repeat(np.arange(len(series.paths)), n_windows)
    row = np.tile(np.arange(n_windows), len(series.paths))
    return TensorWindows(series, level, shard, 50 * row, row, LAYOUT.keep_mask(mode, "tensor"), 100)


def read_plainly(windows: TensorWindows) -> np.ndarray:
    """The same as ``tensor_inputs`` of arrays that were read whole."""
    return np.concatenate(
        [
            tensor_inputs(
                np.load(windows.series.paths[shard])[None, first : first + 100],
                np.load(windows.level.paths[shard])[None, row],
            )[:, :, windows.keep]
            for shard, first, row in zip(
                windows.shard, windows.first_bin, windows.row, strict=True
            )
        ]
    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_windows_equal_relative_inputs_to_the_last_bit(mode: Mode, tmp_path: Path):
    windows = all_windows(*shards_on_disk(tmp_path, 7), mode)
    expected = read_plainly(windows)
    order = np.random.default_rng(0).permutation(len(windows))
    assert windows[order].tobytes() == expected[order].tobytes()
    for index in order:
        assert windows[[index]].tobytes() == expected[[index]].tobytes()


def test_more_shards_than_files_may_be_open(tmp_path: Path):
    windows = all_windows(*shards_on_disk(tmp_path, 80, 1), "realistic", 1)
    expected = read_plainly(windows)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, before[1]))
    try:
        got = windows[:]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    np.testing.assert_array_equal(got, expected)
    assert len(list(Path("/proc/self/fd").iterdir())) <= used


@pytest.mark.parametrize(
    ("most", "resident"), [(10, 2**28), (24_000, 1), (1, 1)], ids=["maps", "pages", "both"]
)
def test_what_is_let_go_of_is_read_again(
    most: int, resident: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    windows = all_windows(*shards_on_disk(tmp_path, 30), "oracle")
    expected = read_plainly(windows)
    monkeypatch.setattr(features.loaders, "MOST_MAPS", most)
    monkeypatch.setattr(features.loaders, "RESIDENT_BYTES", resident)
    random = np.random.default_rng(0)
    for _ in range(20):
        index = random.integers(0, len(windows), 4)
        np.testing.assert_array_equal(windows[index], expected[index])
        assert len(windows.series._maps) <= max(most, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are handed back on Linux")
def test_loaders_hand_their_pages_back_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    series, level = shards_on_disk(tmp_path, 3)
    one, other = (
        all_windows(RowFiles(series.paths, 46), RowFiles(level.paths, 46), "oracle")
        for _ in range(2)
    )
    monkeypatch.setattr(features.loaders, "RESIDENT_BYTES", 2**40)
    one[:]
    assert one.series._touched.any()
    monkeypatch.setattr(features.loaders, "RESIDENT_BYTES", 1)
    other[:]
    assert not one.series._touched.any()
    np.testing.assert_array_equal(one[:], other[:])


def test_copies_read_the_same(tmp_path: Path):
    windows = all_windows(*shards_on_disk(tmp_path, 3), "oracle")
    expected = windows[:]
    unpickled = ForkingPickler.loads(ForkingPickler.dumps(windows))
    for other in (copy.copy(windows), copy.deepcopy(windows), unpickled):
        np.testing.assert_array_equal(other[:], expected)
    with ThreadPoolExecutor(4) as pool:
        fresh = copy.deepcopy(windows)
        for got in pool.map(lambda at: fresh[at:], range(len(windows))):
            np.testing.assert_array_equal(got, expected[-len(got) :])


def test_a_shard_that_is_not_what_its_table_says_is_refused(tmp_path: Path):
    series, level = shards_on_disk(tmp_path, 2)
    beyond = replace(all_windows(series, level, "oracle"), first_bin=np.full(6, 101))
    with pytest.raises(IndexError):
        beyond[:]
    with pytest.raises(IndexError):
        replace(beyond, first_bin=np.full(6, -1))[:]
    with pytest.raises(ValueError, match="45 float32"):
        replace(beyond, series=RowFiles(series.paths, 45))[:]
    whole = series.paths[1].read_bytes()
    series.paths[1].write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=str(len(whole))):
        all_windows(RowFiles(series.paths, 46), level, "oracle")[:]
    series.paths[1].unlink()
    with pytest.raises(FileNotFoundError):
        all_windows(RowFiles(series.paths, 46), level, "oracle")[:]
