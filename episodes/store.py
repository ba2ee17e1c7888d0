"""The receiver's store: what its index says, what its folders hold, and where the two differ.

The store is somebody else's: it is only ever read. Judging an episode is ``validation``'s.
"""

from __future__ import annotations

import json
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from episodes.format import ARCHIVE_SUFFIX, batch_key, is_episode_id, is_host_id


class StoreError(Exception):
    """The store as a whole cannot be used; the message says which path and what to do."""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One line of ``index.jsonl``."""

    episode_id: str
    host_id: str
    sha256: str
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
    path: Path  # where the archive is, or should be
    size_bytes: int | None  # of the file on disk; None: there is none, or not all of it yet
    index_rows: tuple[IndexRow, ...]
    other_hosts: tuple[str, ...] = ()  # further hosts that claim the same id
    arrived_bytes: int | None = None  # of a file that is shorter than the index says
    in_store: bool = True  # False: a file by itself; there is no index that could list it

    @property
    def batch(self) -> str:
        return batch_key(self.host_id, self.episode_id) if self.in_store else ""

    @property
    def identity(self) -> list[object]:
        """What a batch's fingerprint covers: any change in it makes the batch stale.

        The content is named by the index's hash, and no time stamp is in it: a copy of the store
        is the same store. So an archive replaced by another of equal size under an unchanged row
        makes nothing stale, for what was made of the content with that hash still holds; the other
        content is rejected by its hash whenever it is read.
        """
        return [
            self.episode_id,
            self.size_bytes,
            [[row.sha256, row.size_bytes, row.received_at_wall] for row in self.index_rows],
            list(self.other_hosts),
        ]


@dataclass(frozen=True)
class StoreListing:
    """The store at one moment, index and files reconciled; neither is ever rewritten."""

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
        """Where index and files disagree, and what belongs to no batch: one line each."""
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
        found = [episode for episode in self.episodes if episode.episode_id == episode_id]
        if not found:
            raise StoreError(f"{self.root}: no episode {episode_id} in the index or on disk")
        if len(found) > 1:
            hosts = ", ".join(episode.host_id for episode in found)
            raise StoreError(
                f"{self.root}: episode {episode_id} is claimed by several hosts ({hosts}); "
                "name the archive's path instead"
            )
        return found[0]


def find_archive(path: Path) -> StoredEpisode:
    """The episode of an archive named by its path: as its store lists it, or a file by itself.

    Raises:
        OSError: there is no such file.
    """
    size_bytes = path.lstat().st_size
    here = path.parent.resolve() / path.name
    host = here.parent
    if host.parent.name == "episodes" and (host.parent.parent / "index.jsonl").is_file():
        for episode in list_store(host.parent.parent).episodes:
            if episode.path == here:
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

    What is still arriving is not there yet, and so no problem: a file under any other name, a file
    shorter than its index row says, an unfinished last line of the index.

    Raises:
        StoreError: ``root`` holds neither an index nor an ``episodes`` folder.
    """
    root = Path(root)
    if not (root / "index.jsonl").is_file() and not (root / "episodes").is_dir():
        raise StoreError(
            f"{root}: no episode store here (expected index.jsonl and episodes/<host>/"
            f"<episode>{ARCHIVE_SUFFIX}); set `store` to the folder that holds them"
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
        if size is None:  # it may have come, and then its row, since the folder was listed
            size = _size(path)
        arriving = (
            size is not None
            and bool(listed)
            and all(size < row.size_bytes for row in listed)
            and stat.S_ISREG(path.lstat().st_mode)  # what is no file will not become one
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
            problems.append(f"episodes/{host.name}: not a host id; rename the folder")
            continue
        for path in sorted(host.glob(f"*{ARCHIVE_SUFFIX}")):
            episode_id = path.name.removesuffix(ARCHIVE_SUFFIX)
            if path.name.startswith("."):  # an upload in progress
                continue
            if not is_episode_id(episode_id):
                problems.append(f"episodes/{host.name}/{path.name}: the name is not a ULID")
                continue
            size = _size(path)
            if size is not None:  # else it was renamed while we looked
                sizes[host.name, episode_id] = size
    return sizes


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return None


def _read_index(path: Path, problems: list[str]) -> list[IndexRow]:
    if not path.is_file():
        problems.append("index.jsonl: absent; every file counts as not indexed")
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_index_row(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if number < len(lines):  # the last line without a newline is still being written
                problems.append(f"index.jsonl line {number}: {error}")
    return rows


def _index_row(value: object) -> IndexRow:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    wanted = {
        "episode_id": str,
        "host_id": str,
        "sha256": str,
        "size_bytes": int,
        "received_at_wall": str,
        "schema_version": int,
    }
    for name, kind in wanted.items():
        if type(value.get(name)) is not kind:
            raise ValueError(f"{name} is absent or no {kind.__name__}")
    if not is_host_id(value["host_id"]):
        raise ValueError(f"host_id {value['host_id']!r} cannot name a host")
    if not is_episode_id(value["episode_id"]):
        raise ValueError(f"episode_id {value['episode_id']!r} is not a ULID")
    commit = value.get("code_commit")
    return IndexRow(
        **{name: value[name] for name in wanted},
        code_commit=commit if isinstance(commit, str) else None,
        backfilled=value.get("backfilled") is True,
    )
