"""The receiver's store: its index, its folders, and where the two differ.

The store belongs to the receiver and is only read. ``validation`` gives the verdicts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json, to_json

from config.errors import PhasewatchError
from config.messages import suggestion
from episodes.environment import collector_paused, retry, settled
from episodes.format import (
    ARCHIVE_SUFFIX,
    MAX_NAME,
    SCHEMA_VERSION,
    batch_key,
    is_episode_id,
    is_host_id,
    is_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence


class StoreError(PhasewatchError):
    """The store as a whole cannot be used; the message says which path and what to do."""


class IndexRow(NamedTuple):
    """One line of ``index.jsonl``."""

    episode_id: str
    host_id: str
    sha256: str  # lower case, however it is written
    size_bytes: int
    received_at_wall: str
    schema_version: int
    code_commit: str | None = None
    backfilled: bool = False


class StoredEpisode(NamedTuple):
    """One episode of one host: its index rows and its archive, either of which may be missing."""

    host_id: str
    episode_id: str
    file: str  # the archive, present or not
    size_bytes: int | None  # of the file on disk; None: missing, or still arriving
    index_rows: tuple[IndexRow, ...]
    other_hosts: tuple[str, ...] = ()  # other hosts that have the same id
    arrived_bytes: int | None = None  # of a file shorter than its index row says
    in_store: bool = True  # False: a single file, without an index
    unreadable: str = ""  # why its folder cannot be read; its size is then what the index says

    @property
    def path(self) -> Path:
        return Path(self.file)

    @property
    def absence(self) -> str:
        """What is on disk of an archive without a size."""
        if self.arrived_bytes is None:
            return "not on disk"
        expected = max(row.size_bytes for row in self.index_rows)
        return f"on disk with {self.arrived_bytes:,} of {expected:,} bytes: arriving, or cut off"

    @property
    def batch(self) -> str:
        return batch_key(self.host_id, self.episode_id) if self.in_store else ""

    @property
    def identity(self) -> list[object]:
        """What a batch's fingerprint covers: any change in it makes the batch stale.

        The content is identified by the index's hash, and the times of files are left out, so a
        copy of the store is the same store. An archive replaced by another of equal size under an
        unchanged row makes nothing stale: artifacts of the content with that hash are still right,
        and the new content is rejected by its hash when it is read. ``code_commit``, which no
        verdict depends on, is left out too.
        """
        return [
            self.episode_id,
            self.size_bytes,
            [
                [row.sha256, row.size_bytes, row.received_at_wall]
                # fingerprints made before this was covered stay as they are
                + ([] if row.schema_version == SCHEMA_VERSION else [row.schema_version])
                for row in self.index_rows
            ],
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

    @cached_property
    def by_file(self) -> dict[str, StoredEpisode]:
        """The episodes by the path of their archive."""
        return {episode.file: episode for episode in self.episodes}

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
        """The episode with this id, in upper or lower case.

        Raises:
            StoreError: the store has none, or several hosts claim it.
        """
        wanted = episode_id.upper()
        every = self.episodes
        episodes = [episode for episode in every if episode.episode_id == wanted]
        if not episodes:
            ids = (episode.episode_id for episode in every)
            if os.path.isdir(episode_id):  # noqa: PTH112  any text may be asked for
                raise StoreError(
                    f"{episode_id}: a folder; give one episode, by its id or its {ARCHIVE_SUFFIX}"
                )
            if os.path.exists(episode_id):  # noqa: PTH110
                raise StoreError(
                    f"{episode_id}: not an episode; give an id, a batch, a folder or a "
                    f"{ARCHIVE_SUFFIX}"
                )
            if episode_id in self.batches:
                first = self.batches[episode_id][0].episode_id
                raise StoreError(
                    f"{episode_id}: a batch; give one of its episodes, such as {first}"
                )
            if os.sep in episode_id:
                raise StoreError(f"{episode_id}: no such file or folder")
            raise StoreError(
                f"{self.root}: no episode {episode_id} in the index or on disk{_like(wanted, ids)}"
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
        if not is_episode_id(name.upper()) and (hint := _like(name, self.batches)):
            raise StoreError(f"{self.root}: no batch {name}{hint}")
        return (self.find(name),)


def _like(name: str, known: Iterable[str]) -> str:
    # ids are alike by chance: they begin with the time
    return suggestion(name, known, n=3, alike=0.8)


def find_archive(path: Path) -> StoredEpisode:
    """The episode of an archive given by its path: as its store lists it, or as a single file.

    Raises:
        OSError: the file does not exist.
    """
    size_bytes = path.lstat().st_size
    # as it was named, too: the folder of a host may be a link to another disk
    for absolute in (Path(os.path.abspath(path)), path.parent.resolve() / path.name):  # noqa: PTH100
        folder, store = absolute.parent.parent, absolute.parent.parent.parent
        if folder.name != "episodes" or not (store / "index.jsonl").is_file():
            continue
        if listed := list_store(store).by_file.get(str(absolute)):
            return listed
    episode_id = path.name.removesuffix(ARCHIVE_SUFFIX)
    return StoredEpisode("", episode_id, str(path), size_bytes, (), in_store=False)


def _absence(episode: StoredEpisode) -> str:
    return ("in the index, " if episode.arrived_bytes is None else "") + episode.absence


def list_store(root: Path, snapshot: Path | None = None) -> StoreListing:
    """Reconcile ``index.jsonl`` with ``episodes/<host_id>/*.tar.zst``.

    Unfinished uploads are not reported as problems: a file under any other name, a file shorter
    than its index row says, a last line of the index without a newline.

    A process that lists a store again reads only what changed since, see ``_Store``.

    Args:
        snapshot: where a large listing is kept for the next process, which then lists the folders
            and reads only what changed since. It can be deleted at any time.

    Raises:
        StoreError: see ``check_store``.
        MachineError: the index, or the list of hosts, cannot be read.
    """
    root = Path(root)
    with _LOCK, collector_paused():
        return retry(partial(_look, root, snapshot), root)


def check_store(root: Path) -> None:
    """Refuse what is no store, without listing it.

    Raises:
        StoreError: ``root`` has neither an index nor an ``episodes`` folder.
    """
    if not (root / "index.jsonl").is_file() and not (root / "episodes").is_dir():
        wrong = "not an episode store" if os.path.lexists(root) else "no such folder"
        raise StoreError(
            f"{root}: {wrong}; the store is the folder that has index.jsonl and "
            f"episodes/<host>/<episode>{ARCHIVE_SUFFIX}"
        )


def _look(root: Path, snapshot: Path | None) -> StoreListing:
    check_store(root)
    key = root, root.absolute(), snapshot
    try:
        if key not in _stores:
            _stores[key] = _Store(root, snapshot)
        return _stores[key].look()
    except BaseException:
        _stores.pop(key, None)  # what it had seen of a change would be taken for the state before
        raise


_WORTHWHILE = 5_000  # episodes; fewer are listed as fast as a snapshot of them is read
_Key = tuple[str, str]  # host and episode
_LOCK = Lock()  # sensors run in threads
_stores: dict[tuple[Path, Path, Path | None], _Store] = {}


class _Store:
    """A store as this process last saw it.

    The index is read from where it was left, provided that all before is as it was. A host's folder
    is listed again when it changes; a file whose size is not that of its index row may still grow,
    which does not change the folder, so it is looked at each time. An archive that is altered in
    place later makes nothing stale, see ``StoredEpisode.identity``.
    """

    def __init__(self, root: Path, snapshot: Path | None = None):
        self._root, self._snapshot = root, snapshot
        self._n_changed = 0  # episodes, since the snapshot
        self._index = _Index(root / "index.jsonl")
        self._folders: dict[str, _Folder] = {}
        self._hosts: dict[str, tuple[str, ...]] = {}  # that have an episode, by its id
        self._batches: dict[str, dict[str, StoredEpisode]] = defaultdict(dict)
        self._listed: dict[str, tuple[StoredEpisode, ...]] = {}  # the same, in order
        self._listing: StoreListing | None = None  # as last returned
        if snapshot:
            self._restore(snapshot)

    def look(self) -> StoreListing:
        problems: list[str] = []
        changed = self._look_at_folders(problems)  # before the index: a row follows its file
        changed |= self._index.read()
        self._reconcile(changed)
        problems += self._index.problems
        if self._listing is None or changed or tuple(problems) != self._listing.problems:
            self._listing = StoreListing(self._root, dict(self._listed), tuple(problems))
        self._n_changed += len(changed)
        n_episodes = len(self._hosts)
        if self._snapshot and n_episodes >= _WORTHWHILE and 50 * self._n_changed > n_episodes:
            self._n_changed = 0
            self._save(self._snapshot)
        return self._listing

    @property
    def _snapshot_of(self) -> list[str]:
        """What a snapshot is of: this store, as this code reads it."""
        code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        return [str(self._root.absolute()), code]

    def _save(self, path: Path) -> None:
        """Write a snapshot; where that fails, the next process reads the whole store."""
        index = self._index
        if index.unfinished or any(folder.unreadable for folder in self._folders.values()):
            return
        state = {
            "of": self._snapshot_of,
            "index": index.state,
            "batches": {
                batch: [
                    [e.episode_id, e.size_bytes, e.arrived_bytes, e.other_hosts,
                     [row[2:] for row in e.index_rows]]
                    for e in episodes
                ]
                for batch, episodes in self._listed.items()
            },
        }  # fmt: skip
        with suppress(OSError, ValueError):
            body = to_json(state)
            path.parent.mkdir(exist_ok=True)
            # not atomic: half of it does not have this hash
            path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def _restore(self, path: Path) -> None:
        """Take over a snapshot of this store, as if this process had looked at that time.

        The folders are listed again, so a file that was altered in place is seen.
        """
        try:
            digest, _, body = path.read_bytes().partition(b"\n")
        except OSError:
            return
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return
        state = from_json(body)
        if state["of"] != self._snapshot_of:
            return
        for batch, entries in state["batches"].items():
            host_id = batch.rpartition(".")[0]
            folder = self._folders.setdefault(host_id, _Folder(self._root / "episodes" / host_id))
            listed = []
            for episode_id, size, arrived, others, stored_rows in entries:
                rows = [IndexRow(episode_id, host_id, *row) for row in stored_rows]
                file = f"{self._root}/episodes/{host_id}/{episode_id}{ARCHIVE_SUFFIX}"
                listed.append(
                    StoredEpisode(
                        host_id, episode_id, file, size, tuple(rows), tuple(others), arrived
                    )
                )
                if rows:
                    self._index.rows[host_id, episode_id] = rows
                if size is not None or arrived is not None:
                    folder.sizes[episode_id] = arrived if size is None else size
                    folder.expect(episode_id, [row.size_bytes for row in rows])
                self._hosts[episode_id] = (host_id, *others)
            self._listed[batch] = tuple(listed)
            self._batches[batch] = {episode.episode_id: episode for episode in listed}
        self._index.restore(state["index"])

    def _look_at_folders(self, problems: list[str]) -> set[_Key]:
        """The episodes whose file came, went or has another size than before."""
        root = self._root / "episodes"
        folders = {}
        for name in _folder_names(root) if root.is_dir() else ():
            if not is_host_id(name):
                problems.append(f"episodes/{name}: name must be a host id; rename the folder")
                continue
            folders[name] = self._folders.get(name) or _Folder(root / name)
        changed = {
            (host, episode_id)
            for host in self._folders.keys() - folders.keys()
            for episode_id in self._folders[host].sizes
        }
        self._folders = folders
        for host, folder in folders.items():
            before = folder.unreadable
            changed |= {(host, episode_id) for episode_id in folder.look()}
            if folder.unreadable != before:
                changed |= {key for key in self._index.rows if key[0] == host}
            problems += folder.problems
        return changed

    def _reconcile(self, changed: set[_Key]) -> None:
        """Rebuild these episodes, and the batches that they belong to."""
        rows, folders, hosts_of = self._index.rows, self._folders, self._hosts
        sharing: set[_Key] = set()  # have an id in common with these
        for host_id, episode_id in changed:
            folder, hosts = folders.get(host_id), hosts_of.setdefault(episode_id, ())
            in_store = (host_id, episode_id) in rows or (
                folder is not None and episode_id in folder.sizes
            )
            if in_store != (host_id in hosts):
                others = tuple(host for host in hosts if host != host_id)
                hosts_of[episode_id] = (*others, host_id) if in_store else others
                sharing.update((host, episode_id) for host in others)
        touched = set()
        for host_id, episode_id in changed | sharing:
            batch = batch_key(host_id, episode_id)
            touched.add(batch)
            if host_id in hosts_of[episode_id]:
                self._batches[batch][episode_id] = self._episode(host_id, episode_id)
            else:
                self._batches[batch].pop(episode_id, None)
        for batch in touched:
            episodes = self._batches[batch]
            self._listed[batch] = tuple(episodes[key] for key in sorted(episodes))
            if not episodes:
                del self._batches[batch], self._listed[batch]
        if touched:
            self._listed = {key: self._listed[key] for key in sorted(self._listed)}

    def _episode(self, host_id: str, episode_id: str) -> StoredEpisode:
        folder = self._folders.get(host_id)
        file = f"{self._root}/episodes/{host_id}/{episode_id}{ARCHIVE_SUFFIX}"
        rows = tuple(self._index.rows.get((host_id, episode_id), ()))
        size = folder.sizes.get(episode_id) if folder else None
        if folder and folder.unreadable:
            size = rows[0].size_bytes if size is None and rows else size
        elif size is None:  # the file and its row may have come since the folder was listed
            size = _size(file)
        elif folder:
            folder.expect(episode_id, [row.size_bytes for row in rows])
        arriving = (
            size is not None
            and bool(rows)
            and size < rows[0].size_bytes  # of most it says all, and the first is cheap
            and all(size < row.size_bytes for row in rows)
            and not (folder and folder.unreadable)
            and stat.S_ISREG(os.lstat(file).st_mode)  # anything else never becomes a file
        )
        hosts = self._hosts[episode_id]
        return StoredEpisode(
            host_id,
            episode_id,
            file,
            None if arriving else size,
            rows,
            tuple(sorted(host for host in hosts if host != host_id)) if len(hosts) > 1 else (),
            size if arriving else None,
            unreadable=folder.unreadable if folder else "",
        )


class _Folder:
    """The archives of one host, as they were when last looked at.

    A folder that cannot be read, perhaps for a while, is as it was; that is a problem of its own.
    """

    def __init__(self, path: Path):
        self.path = path
        self._seen: tuple[int, ...] | None = None
        self._unsettled: set[str] = set()  # may still grow
        self.sizes: dict[str, int] = {}
        self.unreadable = ""  # why
        self.problems: list[str] = []

    def expect(self, episode_id: str, sizes: Collection[int]) -> None:
        """Say which sizes the index gives a file: with another it is looked at each time."""
        settled = self.sizes[episode_id] in sizes
        (self._unsettled.discard if settled else self._unsettled.add)(episode_id)

    def look(self) -> set[str]:
        """The episodes whose file came, went or has another size than before."""
        try:
            changed = self._look()
        except OSError as error:
            self._seen, self.unreadable = None, error.strerror or str(error)
            self.problems = [
                f"episodes/{self.path.name}: cannot be read ({self.unreadable}); its episodes are "
                "assumed to match the index"
            ]
            return set(self.sizes)
        if self.unreadable:
            self.unreadable = ""
            changed |= set(self.sizes)
        return changed

    def _look(self) -> set[str]:
        now = self.path.stat()
        seen = (now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns)
        before = self.sizes
        if seen == self._seen:
            sizes = {each: _size(f"{self.path}/{each}{ARCHIVE_SUFFIX}") for each in self._unsettled}
            self.sizes = before | {each: size for each, size in sizes.items() if size is not None}
            return {each for each in sizes if self.sizes[each] != before[each]}
        self._seen = seen if settled(now) else None
        self.sizes = self._list()
        self._unsettled &= self.sizes.keys()
        return {
            each
            for each in before.keys() | self.sizes.keys()
            if before.get(each) != self.sizes.get(each)
        }

    def _list(self) -> dict[str, int]:
        found = sorted(_archives(self.path))
        self.problems = []
        sizes = {}
        for name, size in found:
            episode_id = name.removesuffix(ARCHIVE_SUFFIX)
            if is_episode_id(episode_id):
                sizes[episode_id] = size
            else:
                where = f"episodes/{self.path.name}/{name}"
                self.problems.append(f"{where}: name must be a ULID")
        return sizes


def _folder_names(root: Path) -> list[str]:
    """The folders, whether they can be read or not."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _archives(folder: Path) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            # others that begin with a dot are uploads in progress
            if entry.name.endswith(ARCHIVE_SUFFIX) and not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # it was renamed meanwhile
                    yield entry.name, entry.stat(follow_symlinks=False).st_size


def _size(file: str) -> int | None:
    try:
        return os.lstat(file).st_size
    except FileNotFoundError:
        return None


class _Index:
    """The rows of ``index.jsonl``, as far as it was read."""

    def __init__(self, path: Path):
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._seen: tuple[int, ...] | None = None
        self._read, self._lines = 0, 0  # bytes and number of whole lines
        self._digest = hashlib.sha256().digest()  # of those bytes
        self._last: IndexRow | None = None  # of a last line without a newline
        self.rows: dict[_Key, list[IndexRow]] = {}
        self._problems: list[str] = []
        self._malformed = 0  # lines

    @property
    def unfinished(self) -> bool:
        """Whether the last line had no newline."""
        return self._last is not None

    @property
    def state(self) -> Sequence[Any]:
        """What a snapshot has of it besides its rows."""
        read = self._read, self._lines, self._digest.hex()
        return self._seen, read, self._problems, self._malformed

    def restore(self, state: Sequence[Any]) -> None:
        seen, (self._read, self._lines, digest), self._problems, self._malformed = state
        self._seen, self._digest = seen and tuple(seen), bytes.fromhex(digest)

    @property
    def problems(self) -> list[str]:
        more = self._malformed - _MOST_NAMED
        return [*self._problems, *([f"index.jsonl: and {more} more lines"] if more > 0 else [])]

    def read(self) -> set[_Key]:
        """Read what was added; returns the episodes that have other rows than before."""
        if not self._path.is_file():
            changed = set(self.rows)
            self._forget()
            self._problems = ["index.jsonl: missing; every file counts as not indexed"]
            return changed
        now = self._path.stat()
        seen = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
        if seen == self._seen:
            return set()
        content = self._path.read_bytes()
        changed = set()
        if not self._read:
            self._problems = []  # it was missing
        if hashlib.sha256(content[: self._read]).digest() != self._digest:
            changed = set(self.rows)
            self._forget()
        self._seen = seen if settled(now) else None
        if self._last:  # it is read again, perhaps longer
            changed.add(self._take(self._last, list.remove))
            self._last = None
        whole = content.rfind(b"\n") + 1
        for line in io.BytesIO(memoryview(content)[self._read : whole]):
            self._lines += 1
            try:
                row = _index_row(line[:-1])
            except (ValueError, RecursionError) as error:
                self._malformed += 1
                if self._malformed <= _MOST_NAMED:
                    problem = f"index.jsonl line {self._lines}: {error}"
                    self._problems.append(problem[:_LONGEST])
                continue
            if row:
                changed.add(self._take(row, list.append))
        self._read, self._digest = whole, hashlib.sha256(content[:whole]).digest()
        with suppress(ValueError, RecursionError):  # still being written
            self._last = _index_row(content[whole:])
        if self._last:
            changed.add(self._take(self._last, list.append))
        return changed

    def _take(self, row: IndexRow, how: Callable[[list[IndexRow], IndexRow], None]) -> _Key:
        key = row.host_id, row.episode_id
        how(self.rows.setdefault(key, []), row)
        if not self.rows[key]:
            del self.rows[key]
        return key


_MAX_LINE_BYTES = 64 * 2**10  # of the index; 300 are usual
_MOST_NAMED = 100  # malformed lines of the index
_LONGEST = 500  # characters of a problem: a line may say anything

_TYPES = (
    ("episode_id", str),
    ("host_id", str),
    ("sha256", str),
    ("size_bytes", int),
    ("received_at_wall", str),
    ("schema_version", int),
)


def _json(line: bytes) -> object:
    """As ``json.loads``, which takes twice as long."""
    try:
        return from_json(line, cache_strings="keys")
    except ValueError:  # also for half a character, which gets an error of its own
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON (column {error.colno})") from None


def _index_row(line: bytes) -> IndexRow | None:
    """The row of a line, None if the line is blank."""
    if len(line) > _MAX_LINE_BYTES:
        raise ValueError(f"must be at most {_MAX_LINE_BYTES:,} bytes, got {len(line):,}")
    if not line.strip():
        return None
    value = _json(line)
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {type(value).__name__}")
    for name, kind in _TYPES:
        if type(value.get(name)) is not kind:
            raise ValueError(
                f"{name} is missing or not {'a string' if kind is str else 'an integer'}"
            )
        if kind is str and not (value[name].isascii() or is_text(value[name])):
            raise ValueError(
                f"{name} of episode {value['episode_id']!a} must be Unicode text, "
                f"got {value[name]!a}"
            )
        if kind is str and len(value[name]) > MAX_NAME:
            raise ValueError(f"{name} must be at most {MAX_NAME} characters")
    if not 0 <= value["size_bytes"] < 2**63:
        raise ValueError(f"size_bytes must be 0 to 2^63 - 1, got {value['size_bytes']}")
    if not is_host_id(value["host_id"]):
        raise ValueError(f"host_id must be a host id, got {value['host_id']!r}")
    if not is_episode_id(value["episode_id"]):
        raise ValueError(f"episode_id must be a ULID, got {value['episode_id']!r}")
    commit = value.get("code_commit")
    return IndexRow(
        value["episode_id"],
        value["host_id"],
        value["sha256"].lower(),
        value["size_bytes"],
        value["received_at_wall"],
        value["schema_version"],
        commit if isinstance(commit, str) and is_text(commit) and len(commit) <= MAX_NAME else None,
        value.get("backfilled") is True,
    )
