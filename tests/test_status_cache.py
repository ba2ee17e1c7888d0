"""What was found current is not looked through again, and nothing that changed is missed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import Lab

import episodes.store
import stages.ingest
import stages.manifest
import stages.status_cache
from config.signing import new_key
from stages.registry import STAGES

INGEST = STAGES["ingest"]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many manifests are read and files hashed from here on; no file counts as just written."""
    done: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            done[name] += 1
            return function(*given)

        return call

    monkeypatch.setattr(stages.status_cache, "settled_since", lambda _: True)
    monkeypatch.setattr(stages.manifest, "settled", lambda _: False)  # within one process
    monkeypatch.setattr(stages.manifest, "_hashes", {})
    for module, name in ((stages.manifest, "file_sha256"), (stages.ingest, "read_manifest")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return done


def due(lab: Lab, *, verify: bool = True) -> dict[str, str]:
    """Batch -> code of what is due."""
    return {d.key: d.statuses[0].code for d in lab.project.due("ingest", verify=verify)}


def cache(lab: Lab) -> Path:
    return lab.artifacts / "cache" / "current_batches.json"


def test_what_is_current_is_read_and_hashed_once(ingested: Lab, work: Counter[str]) -> None:
    assert due(ingested, verify=False) == {}
    assert work["read_manifest"] == 3 * len(ingested.project.listing.batches)
    assert work["file_sha256"] == 0
    assert due(ingested) == {}  # the files were not hashed yet
    assert work["file_sha256"] > 0
    work.clear()
    assert due(ingested) == due(ingested, verify=False) == {}
    assert not work


def test_the_listing_of_a_large_store_is_kept(
    ingested: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ingested.artifacts / "cache" / "store_listing.json"
    assert not kept.exists()  # it is small
    monkeypatch.setattr(episodes.store, "_WORTHWHILE", 1)
    monkeypatch.setattr(episodes.store, "_stores", {})  # as in another process
    unsigned = ingested.workspace.model_copy(update={"require_signatures": True})
    assert unsigned.listing().batches
    assert not kept.exists()
    episodes.store._stores.clear()
    assert ingested.workspace.listing().batches
    assert kept.exists()


def flip(path: Path) -> None:
    """Change a byte; size and times stay, except for the one that nobody can set."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_copy(path: Path) -> None:
    flip(path)
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.mark.parametrize("damage", [flip, replace_by_copy, Path.unlink])
@pytest.mark.parametrize("name", ["series-*", "features-*", "windows-*", "index.*", "manifest*"])
def test_damage_is_found_although_it_was_current(
    damage: Callable[[Path], None], name: str, ingested: Lab, work: Counter[str]
) -> None:
    assert due(ingested) == {}
    batch = next(iter(ingested.project.listing.batches))
    damage(next(ingested.workspace.batch_folder(batch).rglob(name)))
    assert due(ingested).keys() == {batch}
    assert work["file_sha256"] > 0


def test_other_episodes_or_settings_are_noticed(ingested: Lab, work: Counter[str]) -> None:
    assert due(ingested) == {}
    late = ingested.store.add(host="lab-a", duration_s=40)
    batch = ingested.project.listing.find(late.episode_id).batch
    assert due(ingested) == {batch: "episodes"}
    ingested.settings = ingested.settings | {"validation": {"min_rows": 5}}
    assert set(due(ingested).values()) == {"policy"}
    assert len(due(ingested)) == len(ingested.project.listing.batches)
    assert work


def test_a_key_that_is_trusted_later_is_asked(
    ingested: Lab, work: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert due(ingested) == {}
    monkeypatch.setenv("PHASEWATCH_KEYS", str(tmp_path / "keys"))
    new_key("someone")
    work.clear()
    assert due(ingested) == {}
    assert work
    ingested.settings = ingested.settings | {"require_signatures": True}
    assert set(due(ingested).values()) == {"signature"}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"lab-a": 1}', b"[" * 10**5, b"\xff"])
def test_an_unreadable_memory_is_forgotten(
    content: bytes, ingested: Lab, work: Counter[str]
) -> None:
    assert due(ingested) == {}
    cache(ingested).write_bytes(content)
    work.clear()
    assert due(ingested) == {}
    assert work["file_sha256"] > 0
    work.clear()
    assert due(ingested) == {}
    assert not work


def test_what_was_just_written_is_not_remembered(
    ingested: Lab, work: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.status_cache, "settled_since", lambda _: False)
    assert due(ingested) == {}
    assert not cache(ingested).exists()
    assert work["file_sha256"] > 0


def test_a_folder_that_takes_no_file_is_no_fault(ingested: Lab, work: Counter[str]) -> None:
    assert not cache(ingested).parent.exists()
    cache(ingested).parent.write_text("a file")
    assert due(ingested) == {}
    assert work


def test_a_key_that_cannot_be_read_matters_only_to_what_is_signed(
    ingested: Lab, work: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PHASEWATCH_KEYS", str(tmp_path))
    (tmp_path / "someone.pub").write_text("no key")
    assert due(ingested) == {}
    assert work["file_sha256"] > 0
    assert not cache(ingested).exists()
