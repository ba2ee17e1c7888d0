"""A simulated store on disk: what it is made from, and the episodes that it lacks."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from config.disk import folder_lock
from config.paths import base_folder
from episodes.format import ARCHIVE_SUFFIX
from features.files import fingerprint, write_atomically
from simulation.archives import PLACEHOLDER_BYTES, placeholder, simulate
from simulation.defects import DEFECTS
from simulation.parents import Parent, ParentId, SimulationError, find_parents, read_parent
from simulation.plan import Child, Part, Plan
from stages.workers import cores, worker_processes

FILE = "simulation.json"
"""In the store: says that it is simulated, from what, and which parts it has."""

_FORMAT = 1
_INDEX = "index.jsonl"
_PER_TASK = 16  # episodes
_PER_PROCESS = 250  # with fewer episodes for each, a further process does not pay

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Corpus:
    """A simulated store and its plan; ``done`` parts are complete."""

    folder: Path
    plan: Plan
    done: bool  # the last part is

    @property
    def part(self) -> Part:
        """The last part."""
        return self.plan.parts[-1]


@dataclass(frozen=True)
class CorpusWritten:
    """What was written."""

    episodes: int  # now
    kept: int  # were there already
    n_bytes: int  # of archives written now


@dataclass(frozen=True)
class CorpusRequest:
    """What a person asks for; what is None is as in the corpus, or as usual."""

    episodes: int
    days: int
    hosts: int | None = None
    seed: int | None = None
    defects: float | None = None
    first_day: str | None = None
    longest_s: int | None = None
    placeholders: bool | None = None


DEFAULTS = CorpusRequest(0, 0, hosts=12, seed=0, defects=0.02, first_day="2027-01-01")


def open_corpus(folder: Path, parents: Path, wanted: CorpusRequest, *, append: bool) -> Corpus:
    """The corpus that a folder is to hold, with the part that is asked for; nothing is written.

    Args:
        parents: the store whose episodes the children are made of.
        append: add a part to the corpus; an unfinished one is finished instead.

    Raises:
        SimulationError: the folder holds something else, another corpus, or nothing to add to.
    """
    ids = find_parents(parents)
    refuse_recorded(folder, parents)
    known = _read(folder)
    if known is None:
        if append:
            raise SimulationError(
                f"{folder}: holds no simulated store to add to; run it without --append"
            )
        given = _filled(wanted, DEFAULTS)
        part = _part(given, first=0)
        return Corpus(folder, Plan(given.seed or 0, ids, (part,), tuple(DEFECTS)), done=False)
    if known["parents"] != _identity(ids):
        raise SimulationError(
            f"{folder}: was made from episodes other than those that {parents} has now; name an "
            "empty folder"
        )
    parts, seed = known["parts"], known["seed"]
    last = parts[-1]
    as_before = replace(
        DEFAULTS,
        seed=seed,
        hosts=last.hosts,
        defects=last.defects,
        first_day=last.first_day,
        longest_s=last.longest_s,
        placeholders=last.placeholders,
    )
    same = _filled(wanted, as_before)
    is_last = _part(same, last.first) == last and same.seed == seed
    if append and known["done"]:
        given = _filled(wanted, replace(as_before, first_day=last.after))
        if given.seed != seed:
            raise SimulationError(f"seed must be {seed}, the seed of the corpus, got {given.seed}")
        part = _part(given, first=last.first + last.episodes)
        return Corpus(folder, Plan(seed, ids, (*parts, part), tuple(DEFECTS)), done=False)
    if not is_last:
        raise SimulationError(
            f"{folder}: already holds a simulated store; add to it with --append, or name an empty "
            "folder"
            if known["done"]
            else f"{folder}: its last part is not finished; run it again with: {_options(last)}"
        )
    return Corpus(folder, Plan(seed, ids, parts, tuple(DEFECTS)), done=known["done"])


def _options(part: Part) -> str:
    """What asks for a part."""
    cropped = f" --longest {part.longest_s}" if part.longest_s else ""
    shards = " --shards FOLDER" if part.placeholders else ""
    return (
        f"--episodes {part.episodes} --days {part.days} --hosts {part.hosts} "
        f"--defects {part.defects} --first-day {part.first_day}{cropped}{shards}"
    )


def refuse_recorded(folder: Path, parents: Path) -> None:
    """Refuse to write to the embedded store, or to the one that the parents are in."""
    for recorded in (base_folder() / "data" / "store", parents):
        if folder.resolve().is_relative_to(recorded.resolve()):
            raise SimulationError(
                f"{folder}: must not be a recorded store, nor be inside one ({recorded}); name "
                "another folder for the simulated store"
            )


def _filled(wanted: CorpusRequest, usual: CorpusRequest) -> CorpusRequest:
    given = {name: value for name, value in asdict(wanted).items() if value is not None}
    return replace(usual, **given)


def _part(wanted: CorpusRequest, first: int) -> Part:
    assert wanted.hosts is not None
    assert wanted.defects is not None
    assert wanted.first_day is not None
    return Part(
        first=first,
        episodes=wanted.episodes,
        days=wanted.days,
        hosts=wanted.hosts,
        first_day=wanted.first_day,
        defects=wanted.defects,
        longest_s=wanted.longest_s,
        placeholders=bool(wanted.placeholders),
    )


def _read(folder: Path) -> dict[str, Any] | None:
    """What the folder says it holds; None: nothing yet.

    Raises:
        SimulationError: it holds something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    try:
        known = dict(json.loads((folder / FILE).read_bytes()))
        known["parts"] = tuple(Part(**part) for part in known["parts"])
        known["seed"] = int(known["seed"])
        assert known["format"] == _FORMAT
        assert known["parts"]
        assert {"parents", "done"} < known.keys()
    except OSError:
        raise SimulationError(
            f"{folder}: must be empty or a simulated store (with {FILE}), got neither; "
            "name another folder"
        ) from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise SimulationError(
            f"{folder / FILE}: was changed, or written by another version; name an empty folder"
        ) from None
    return known


def _identity(parents: Sequence[ParentId]) -> str:
    """Of the parents' contents, wherever their store is."""
    return fingerprint([[parent.episode_id, parent.sha256] for parent in parents])


def write_corpus(
    corpus: Corpus,
    processes: int | None,
    progress: Progress = lambda *_: None,
    prepare: Callable[[], None] = lambda: None,
) -> CorpusWritten:
    """Write the last part, but for what of it is there. The bytes are the same however many
    processes write them. A part with placeholders is done when its shards are written, too.

    Args:
        processes: None: as many as pay.
        prepare: called in each process, once.

    Raises:
        SimulationError: another call changed the folder since it was opened.
    """
    corpus.folder.mkdir(parents=True, exist_ok=True)
    parts = corpus.plan.parts
    with folder_lock(corpus.folder):  # another call finds what this one wrote
        _check_same(corpus, (parts, parts[:-1]))
        return _write_missing(corpus, processes, progress, prepare)


def _write_missing(
    corpus: Corpus, processes: int | None, progress: Progress, prepare: Callable[[], None]
) -> CorpusWritten:
    folder, plan = corpus.folder, corpus.plan
    for left in folder.glob(f"episodes/*/.*{ARCHIVE_SUFFIX}.*"):
        left.unlink()  # of a call that was killed
    _describe(corpus, done=False)
    present = _indexed(folder)
    lines = Counter(present.values())
    children = list(plan.children(corpus.part))
    missing = [child for child in children if not _is_there(child, folder, lines)]
    for host in {child.host_id for child in children}:
        (folder / "episodes" / host).mkdir(parents=True, exist_ok=True)
    n_bytes = done = 0
    count = processes or max(1, min(cores(), len(missing) // _PER_PROCESS))
    with (folder / _INDEX).open("ab") as index:
        for written in _write_all(missing, folder, plan.seed, count, prepare):
            for size, new in written:
                n_bytes += size
                index.write(b"".join(line for line in new if line not in present))
            index.flush()
            done += len(written)
            progress(done, len(missing))
    if not corpus.part.placeholders:
        _describe(corpus, done=True)
    return CorpusWritten(len(missing), len(children) - len(missing), n_bytes)


def complete(corpus: Corpus) -> None:
    """Mark the last part as done.

    Raises:
        SimulationError: see ``write_corpus``.
    """
    with folder_lock(corpus.folder):
        _check_same(corpus, (corpus.plan.parts,))
        _describe(corpus, done=True)


def _check_same(corpus: Corpus, expected: Sequence[tuple[Part, ...]]) -> None:
    """Refuse a folder that another call has changed since it was opened."""
    plan, known = corpus.plan, _read(corpus.folder)
    origin = (plan.seed, _identity(plan.parents))
    same = known is None or (known["seed"], known["parents"]) == origin
    if not same or (known["parts"] if known else ()) not in expected:
        raise SimulationError(
            f"{corpus.folder}: another `phasewatch simulate` changed it in the meantime; run this "
            "one again"
        )


def _describe(corpus: Corpus, *, done: bool) -> None:
    value = {
        "format": _FORMAT,
        "seed": corpus.plan.seed,
        "parents": _identity(corpus.plan.parents),
        "parts": [asdict(part) for part in corpus.plan.parts],
        "done": done,
    }
    write_atomically(corpus.folder / FILE, json.dumps(value, indent=1).encode() + b"\n")


def _indexed(folder: Path) -> dict[bytes, str]:
    """The lines of the index, and whose they are; one that was cut off is removed from it.

    Raises:
        SimulationError: one was changed.
    """
    path = folder / _INDEX
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        write_atomically(path, whole)
    lines: dict[bytes, str] = {}
    for number, line in enumerate(whole.splitlines(keepends=True), start=1):
        try:
            lines[line] = json.loads(line)["episode_id"]
            assert isinstance(lines[line], str)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise SimulationError(
                f"{path}: line {number} was changed; restore it, or name an empty folder"
            ) from None
    return lines


def _is_there(child: Child, folder: Path, lines: Mapping[str, int]) -> bool:
    """Whether an episode was written in an earlier call: its lines come after its archive.

    Args:
        lines: how many the index has, by episode.
    """
    due = len(DEFECTS[child.defect].index({"sha256": ""})) if child.defect else 1
    return lines.get(child.episode_id, 0) == due and _path(child, folder).exists()


def _path(child: Child, folder: Path) -> Path:
    return folder / "episodes" / child.host_id / f"{child.episode_id}{ARCHIVE_SUFFIX}"


def _write_all(
    children: Sequence[Child],
    folder: Path,
    seed: int,
    count: int,
    prepare: Callable[[], None],
) -> Iterator[list[tuple[int, list[bytes]]]]:
    """Some at a time, in order: the size of each archive and its lines of the index."""
    tasks = [children[i : i + _PER_TASK] for i in range(0, len(children), _PER_TASK)]
    if count < 2:
        yield from (_write(task, folder, seed) for task in tasks)
        return
    with ExitStack() as stack:
        pool = stack.enter_context(worker_processes(count, prepare))
        yield from pool.map(_write, tasks, [folder] * len(tasks), [seed] * len(tasks))


def _write(children: Sequence[Child], folder: Path, seed: int) -> list[tuple[int, list[bytes]]]:
    written = []
    for child in children:
        path = _path(child, folder)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")  # as an upload in progress
        size = 0  # a placeholder takes no place
        if child.placeholder:
            rows = [placeholder(child, parent_of(child), seed)]
            unfinished.touch()
            os.truncate(unfinished, PLACEHOLDER_BYTES)
        else:
            packed, rows = simulate(child, parent_of(child), seed)
            unfinished.write_bytes(packed)
            size = len(packed)
        unfinished.replace(path)
        lines = [json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows]
        written.append((size, lines))
    return written


def parent_of(child: Child) -> Parent:
    """The parent of a child, read once in a process."""
    return _read_parent(child.parent)


_read_parent = cache(read_parent)  # of all parents: under a megabyte each
