"""Looking at a store again: what is read of it, and that it is what a first look would show."""

from __future__ import annotations

import json
import os
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from episodes import store
from episodes.format import ARCHIVE_SUFFIX
from episodes.store import list_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from episodes.store import StoreListing

HOSTS = ("lab-a", "lab-b", "lab-c")
IDS = tuple(f"01M7ZV{day}0000000000000000{i:03}" for day in "BG" for i in range(6))


def as_new(root: Path) -> StoreListing:
    """The listing of a process that never saw the store."""
    return store._Store(root).look()


def kept(root: Path, snapshot: Path) -> StoreListing:
    """The listing of a process that finds a snapshot of another."""
    return store._Store(root, snapshot).look()


def row(host: str, episode_id: str, size: int) -> bytes:
    value: dict[str, Any] = {
        "episode_id": episode_id, "host_id": host, "sha256": f"{size:064x}", "size_bytes": size,
        "received_at_wall": "2026-11-21T20:06:07.155Z", "schema_version": 1,
    }  # fmt: skip
    return json.dumps(value).encode() + b"\n"


def old(path: Path) -> None:
    """Let the last change of a path be long ago, each time another moment."""
    old.moment += 10**9  # type: ignore[attr-defined]
    os.utime(path, ns=(old.moment, old.moment))  # type: ignore[attr-defined]


old.moment = 1_700_000_000_000_000_000  # type: ignore[attr-defined]


class Receiver:
    """Does to a store what receivers and people do to it."""

    def __init__(self, root: Path, seed: int):
        root.mkdir(exist_ok=True)
        self.root, self.chance = root, random.Random(seed)
        self.index = root / "index.jsonl"
        self.index.touch()
        for host in HOSTS:
            self.folder(host).mkdir(parents=True)

    def folder(self, host: str) -> Path:
        return self.root / "episodes" / host

    def some(self) -> tuple[str, str, int]:
        return self.chance.choice(HOSTS), self.chance.choice(IDS), self.chance.randrange(1, 4)

    def file(self) -> None:
        host, episode_id, size = self.some()
        path = self.folder(host) / f"{episode_id}{ARCHIVE_SUFFIX}"
        path.write_bytes(b"x" * size)
        old(path.parent)

    def grow(self) -> None:
        for episode in as_new(self.root).episodes:
            if episode.arrived_bytes is not None:
                episode.path.write_bytes(b"x" * (episode.arrived_bytes + 1))

    def remove(self) -> None:
        paths = sorted(self.root.glob(f"episodes/*/*{ARCHIVE_SUFFIX}"))
        if paths:
            path = self.chance.choice(paths)
            path.unlink()
            old(path.parent)

    def stray(self) -> None:
        host, *_ = self.some()
        (self.folder(host) / f"not-an-id{ARCHIVE_SUFFIX}").touch()
        old(self.folder(host))

    def add_row(self) -> None:
        with self.index.open("ab") as file:
            file.write(row(*self.some()))
        old(self.index)

    def half_a_row(self) -> None:
        line = row(*self.some())
        cut = self.chance.choice((20, len(line) - 1))
        for part in (line[:cut], line[cut:]):
            with self.index.open("ab") as file:
                file.write(part)
            old(self.index)
            list_store(self.root)

    def broken_row(self) -> None:
        with self.index.open("ab") as file:
            file.write(self.chance.choice((b"{\n", b"\n", b"[]\n", b"{}\n")))
        old(self.index)

    def edit_index(self) -> None:
        lines = self.index.read_bytes().splitlines(keepends=True)
        if lines:
            lines[self.chance.randrange(len(lines))] = row(*self.some())
            self.index.write_bytes(b"".join(lines))
            old(self.index)

    def lose_host(self) -> None:
        host, *_ = self.some()
        folder = self.folder(host)
        away = folder.with_name(f".{host}")
        (folder.rename(away) if folder.exists() else away.rename(folder))

    def overwrite(self) -> None:
        """In place, which the folder does not show."""
        paths = sorted(self.root.glob(f"episodes/*/*{ARCHIVE_SUFFIX}"))
        if paths:
            path, size = self.chance.choice(paths), self.chance.randrange(1, 4)
            path.write_bytes(b"x" * size)

    def lose_index(self) -> None:
        content = self.index.read_bytes()
        self.index.unlink()
        list_store(self.root)
        self.index.write_bytes(content)
        old(self.index)


STEPS = (
    "file", "file", "add_row", "add_row", "grow", "remove", "stray", "half_a_row", "broken_row",
    "edit_index", "lose_host", "lose_index",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_looking_again_shows_what_a_first_look_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(store, "settled", lambda _: True)
    monkeypatch.setattr(store, "_WORTHWHILE", seed % 6)  # then a small change is not kept
    snapshot = tmp_path / "cache" / "listing.json"
    receiver = Receiver(tmp_path, seed)
    seen = 0
    for number in range(60):
        step = receiver.chance.choice(STEPS)
        if step in ("file", "remove", "stray") and not all(
            receiver.folder(h).exists() for h in HOSTS
        ):
            step = "lose_host"
        getattr(receiver, step)()
        assert list_store(tmp_path) == as_new(tmp_path), (number, step)
        assert kept(tmp_path, snapshot) == as_new(tmp_path), (number, step)
        seen = max(seen, len(list_store(tmp_path).episodes))
    assert seen > 5


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "settled", lambda _: True)
    receiver = Receiver(tmp_path, seed=0)
    for i, host in enumerate(HOSTS):
        (receiver.folder(host) / f"{IDS[i]}{ARCHIVE_SUFFIX}").write_bytes(b"x")
        with receiver.index.open("ab") as file:
            file.write(row(host, IDS[i], 1))
    for path in (receiver.index, *map(receiver.folder, HOSTS)):
        old(path)
    list_store(tmp_path)
    parsed, listed = counted(monkeypatch, "_index_row"), counted(monkeypatch, "_archives")
    looked_at = counted(monkeypatch, "_size")
    assert len(list_store(tmp_path).episodes) == 3
    assert (len(parsed), len(listed), len(looked_at)) == (0, 0, 0)

    added = receiver.folder("lab-b") / f"{IDS[4]}{ARCHIVE_SUFFIX}"
    added.write_bytes(b"xx")
    with receiver.index.open("ab") as file:
        file.write(row("lab-b", IDS[4], 2))
    for path in (receiver.index, added.parent):
        old(path)
    assert len(list_store(tmp_path).episodes) == 4
    assert [json.loads(line)["episode_id"] for line in parsed if line] == [IDS[4]]
    assert [path.name for path in listed] == ["lab-b"]
    assert not looked_at


def test_a_snapshot_is_read_instead_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "settled", lambda _: True)
    monkeypatch.setattr(store, "_WORTHWHILE", 1)
    root, snapshot = tmp_path / "store", tmp_path / "cache" / "listing.json"
    receiver = Receiver(root, seed=0)
    for step in 3 * ("file", "file", "file", "add_row"):
        getattr(receiver, step)()
    kept(root, snapshot)
    before, expected = snapshot.read_bytes(), as_new(root)
    parsed, judged = counted(monkeypatch, "_index_row"), counted(monkeypatch, "batch_key")
    assert kept(root, snapshot) == expected
    assert (parsed, judged) == ([], [])

    for damaged in (before[:-1], before[:-9] + b"0" + before[-8:], b"", b"\n"):
        snapshot.write_bytes(damaged)
        assert kept(root, snapshot) == expected
        assert snapshot.read_bytes() == before  # it is made again
    elsewhere = shutil.copytree(root, tmp_path / "elsewhere")
    (elsewhere / "index.jsonl").write_bytes(b"")
    assert kept(elsewhere, snapshot) == as_new(elsewhere)
    for _ in range(9):
        receiver.overwrite()
        assert kept(root, snapshot) == as_new(root)
    snapshot.unlink()
    snapshot.mkdir()  # cannot be written
    assert kept(root, snapshot) == as_new(root)


def test_a_change_right_after_a_look_is_seen(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, seed=0)
    for i in range(3):  # within one tick of a coarse clock
        (receiver.folder("lab-a") / f"{IDS[i]}{ARCHIVE_SUFFIX}").write_bytes(b"x")
        stamp = 10**9 * int(receiver.index.stat().st_mtime)
        os.utime(receiver.folder("lab-a"), ns=(stamp, stamp))
        assert len(list_store(tmp_path).episodes) == i + 1


def counted(monkeypatch: pytest.MonkeyPatch, function: str) -> list[Any]:
    """The first arguments with which a function of the store is called from now on."""
    calls: list[Any] = []
    real: Callable[..., Any] = getattr(store, function)

    def call(*arguments: Any) -> Any:
        calls.append(arguments[0])
        return real(*arguments)

    monkeypatch.setattr(store, function, call)
    return calls
