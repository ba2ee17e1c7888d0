"""The receiver's store: its index, its folders, and where the two differ.

The store belongs to the receiver and is only read. ``validation`` judges episodes.
"""

from __future__ import annotations

import json
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from config.messages import meant
from episodes.format import ARCHIVE_SUFFIX, batch_key, is_episode_id, is_host_id, is_text

if TYPE_CHECKING:
    from collections.abc import Iterable


class StoreError(Exception):
    """The store as a whole cannot be used; the message says which path and what to do."""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One line of ``index.jsonl``."""

    episode_id: str
    host_id: str
    sha256: str  # lower case, however it is written
    size_bytes: int
    received_at_wall: str
    schema_version: int
    code_commit: str | None = None
    backfilled: bool = False


@dataclass(frozen=True, slots=True)
class StoredEpisode:
    """One episode of one host: its index rows and its archive, either of which may be missing."""

    host_id: str
    episode_id: str
    path: Path  # of the archive, present or not
    size_bytes: int | None  # of the file on disk; None: missing, or still arriving
    index_rows: tuple[IndexRow, ...]
    other_hosts: tuple[str, ...] = ()  # other hosts that have the same id
    arrived_bytes: int | None = None  # of a file shorter than its index row says
    in_store: bool = True  # False: a single file, without an index

    @property
    def batch(self) -> str:
        return batch_key(self.host_id, self.episode_id) if self.in_store else ""

    @property
    def identity(self) -> list[object]:
        """What a batch's fingerprint covers: any change in it makes the batch stale.

        The content is identified by the index's hash, and timestamps are left out, so a copy of the
        store is the same store. An archive replaced by another of equal size under an unchanged
        row makes nothing stale: artefacts of the content with that hash are still right, and the
        new content is rejected by its hash when it is read.
        """
        return [
            self.episode_id,
            self.size_bytes,
            [[row.sha256, row.size_bytes, row.received_at_wall] for row in self.index_rows],
            list(self.other_hosts),
        ]


@dataclass(frozen=True)
class StoreListing:
    """The store at one moment, with index and files reconciled; neither is rewritten."""

    root: Path
    batches: dict[str, tuple[StoredEpisode, ...]]  # sorted by key, episodes by id
    problems: tuple[str, ...] = field(default=())  # lines and files that belong to no batch

    @property
    def episodes(self) -> list[StoredEpisode]:
        return [episode for batch in self.batches.values() for episode in batch]

    @property
    def unindexed(self) -> list[StoredEpisode]:
        return [episode for episode in self.episodes if not episode.index_rows]

    @property
    def without_file(self) -> list[StoredEpisode]:
        return [episode for episode in self.episodes if episode.size_bytes is None]

    @property
    def differences(self) -> tuple[str, ...]:
        """Where index and files disagree, and what belongs to no batch, one line each."""
        return (
            *self.problems,
            *(f"{e.host_id}/{e.episode_id}: on disk, not in the index" for e in self.unindexed),
            *(f"{e.host_id}/{e.episode_id}: {_absence(e)}" for e in self.without_file),
        )

    def find(self, episode_id: str) -> StoredEpisode:
        """The episode with this id.

        Raises:
            StoreError: the store has none, or several hosts claim it.
        """
        episodes = [episode for episode in self.episodes if episode.episode_id == episode_id]
        if not episodes:
            ids = (episode.episode_id for episode in self.episodes)
            raise StoreError(
                f"{self.root}: no episode {episode_id} in the index or on disk"
                f"{_meant(episode_id, ids)}"
            )
        if len(episodes) > 1:
            hosts = ", ".join(episode.host_id for episode in episodes)
            raise StoreError(
                f"{self.root}: several hosts have an episode {episode_id} ({hosts}); "
                "give the archive's path instead"
            )
        return episodes[0]

    def named(self, name: str) -> tuple[StoredEpisode, ...]:
        """The episodes of a batch, or the one with this id.

        Raises:
            StoreError: it is neither, or several hosts claim the id.
        """
        if name in self.batches:
            return self.batches[name]
        if not is_episode_id(name) and (hint := _meant(name, self.batches)):
            raise StoreError(f"{self.root}: no batch {name}{hint}")
        return (self.find(name),)


def _meant(name: str, known: Iterable[str]) -> str:
    return meant(name, known, n=3, alike=0.8)  # ids are alike by chance: they begin with the time


def find_archive(path: Path) -> StoredEpisode:
    """The episode of an archive given by its path: as its store lists it, or as a single file.

    Raises:
        OSError: the file does not exist.
    """
    size_bytes = path.lstat().st_size
    absolute = path.parent.resolve() / path.name
    host = absolute.parent
    if host.parent.name == "episodes" and (host.parent.parent / "index.jsonl").is_file():
        for episode in list_store(host.parent.parent).episodes:
            if episode.path == absolute:
                return episode
    episode_id = path.name.removesuffix(ARCHIVE_SUFFIX)
    return StoredEpisode("", episode_id, path, size_bytes, (), in_store=False)


def _absence(episode: StoredEpisode) -> str:
    if episode.arrived_bytes is None:
        return "in the index, not on disk"
    expected = max(row.size_bytes for row in episode.index_rows)
    return f"on disk with {episode.arrived_bytes:,} of {expected:,} bytes: arriving, or cut off"


def list_store(root: Path) -> StoreListing:
    """Reconcile ``index.jsonl`` with ``episodes/<host_id>/*.tar.zst``.

    Unfinished uploads are not reported as problems: a file under any other name, a file shorter
    than its index row says, a last line of the index without a newline.

    Raises:
        StoreError: ``root`` has neither an index nor an ``episodes`` folder.
    """
    root = Path(root)
    if not (root / "index.jsonl").is_file() and not (root / "episodes").is_dir():
        raise StoreError(
            f"{root}: not an episode store (must have index.jsonl and episodes/<host>/"
            f"<episode>{ARCHIVE_SUFFIX}); set `store` to the folder that has them"
        )
    problems: list[str] = []
    sizes = _list_files(root, problems)
    rows: dict[tuple[str, str], list[IndexRow]] = defaultdict(list)
    for row in _read_index(root / "index.jsonl", problems):
        rows[row.host_id, row.episode_id].append(row)

    hosts_of: dict[str, set[str]] = defaultdict(set)
    for host_id, episode_id in sizes.keys() | rows.keys():
        hosts_of[episode_id].add(host_id)

    batches: dict[str, list[StoredEpisode]] = defaultdict(list)
    for host_id, episode_id in sorted(sizes.keys() | rows.keys()):
        path = root / "episodes" / host_id / f"{episode_id}{ARCHIVE_SUFFIX}"
        listed = rows[host_id, episode_id]
        size = sizes.get((host_id, episode_id))
        if size is None:  # the file and its row may have come since the folder was listed
            size = _size(path)
        arriving = (
            size is not None
            and bool(listed)
            and all(size < row.size_bytes for row in listed)
            and stat.S_ISREG(path.lstat().st_mode)  # anything else never becomes a file
        )
        episode = StoredEpisode(
            host_id=host_id,
            episode_id=episode_id,
            path=path,
            size_bytes=None if arriving else size,
            index_rows=tuple(listed),
            other_hosts=tuple(sorted(hosts_of[episode_id] - {host_id})),
            arrived_bytes=size if arriving else None,
        )
        batches[episode.batch].append(episode)
    return StoreListing(
        root, {key: tuple(batches[key]) for key in sorted(batches)}, tuple(problems)
    )


def _list_files(root: Path, problems: list[str]) -> dict[tuple[str, str], int]:
    sizes: dict[tuple[str, str], int] = {}
    folder = root / "episodes"
    if not folder.is_dir():
        return sizes
    for host in sorted(folder.iterdir()):
        if not host.is_dir():
            continue
        if not is_host_id(host.name):
            problems.append(f"episodes/{host.name}: name must be a host id; rename the folder")
            continue
        for path in sorted(host.glob(f"*{ARCHIVE_SUFFIX}")):
            episode_id = path.name.removesuffix(ARCHIVE_SUFFIX)
            if path.name.startswith("."):  # an upload in progress
                continue
            if not is_episode_id(episode_id):
                problems.append(f"episodes/{host.name}/{path.name}: name must be a ULID")
                continue
            size = _size(path)
            if size is not None:  # None: it was renamed meanwhile
                sizes[host.name, episode_id] = size
    return sizes


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return None


def _read_index(path: Path, problems: list[str]) -> list[IndexRow]:
    if not path.is_file():
        problems.append("index.jsonl: missing; every file counts as not indexed")
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_index_row(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if number < len(lines):  # a last line without a newline is still being written
                problems.append(f"index.jsonl line {number}: {error}")
    return rows


def _index_row(value: object) -> IndexRow:
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {type(value).__name__}")
    types = {
        "episode_id": str,
        "host_id": str,
        "sha256": str,
        "size_bytes": int,
        "received_at_wall": str,
        "schema_version": int,
    }
    for name, kind in types.items():
        if type(value.get(name)) is not kind:
            raise ValueError(
                f"{name} is missing or not {'a string' if kind is str else 'an integer'}"
            )
        if kind is str and not is_text(value[name]):
            raise ValueError(
                f"{name} of episode {value['episode_id']!a} must be Unicode text, "
                f"got {value[name]!a}"
            )
    if not is_host_id(value["host_id"]):
        raise ValueError(f"host_id must be a host id, got {value['host_id']!r}")
    if not is_episode_id(value["episode_id"]):
        raise ValueError(f"episode_id must be a ULID, got {value['episode_id']!r}")
    commit = value.get("code_commit")
    return IndexRow(
        **{name: value[name] for name in types} | {"sha256": value["sha256"].lower()},
        code_commit=commit if is_text(commit) else None,
        backfilled=value.get("backfilled") is True,
    )
