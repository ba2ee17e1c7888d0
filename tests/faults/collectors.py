"""Collectors that err: clocks, values, lines. And machines that fail while an archive is read.

Nothing that is said wrongly may become a number, and what the machine did may become no verdict.
"""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
from builders import (
    DAY_NS,
    NS_PER_S,
    START_NS,
    Members,
    StoreBuilder,
    edit,
    edit_meta,
    edit_rows,
    make_members,
    rows_of,
    ulid,
)

from episodes import archive
from episodes.environment import MachineError
from episodes.format import EVENTS_FILE, LABELS_FILE, SOURCES
from episodes.reading import Episode
from episodes.store import list_store
from episodes.validation import EpisodeRecord, ValidationPolicy, validate
from faults.apart import Limits, apart
from faults.table import Bench, Outcome, Verdict, fault
from features.alignment import instants
from features.extraction import extract
from features.registry import LAYOUT
from stages.batch import ingest_batch

ID = ulid(START_NS // 1_000_000)
LIMITS = Limits(cpu_s=30.0, wall_s=60.0, most_bytes=2_000_000_000)
FILE = {name: source.file for name, source in SOURCES.items()}
POLLED = ("proc", "qmp", "guest")


@cache
def good(*, coarse: bool = False) -> Members:
    return make_members("lab-a", ID, duration_s=30.0, coarse_netflow=coarse)


def judged(bench: Bench, members: Members) -> tuple[EpisodeRecord, Episode]:
    store = StoreBuilder(bench.folder / f"store-{len(list(bench.folder.iterdir()))}")
    store.add(members=members, episode_id=ID)
    (stored,) = list_store(store.root).episodes
    record, episode = validate(stored, ValidationPolicy(), LAYOUT.fields)
    assert episode is not None
    return record, episode


def columns(episode: Episode, name: str) -> np.ndarray:
    return extract(episode, LAYOUT).series[:, LAYOUT.columns(name)]


def verdict_of(problems: list[str], record: EpisodeRecord) -> Outcome:
    if problems:
        return Outcome("wrong", f"{'; '.join(problems)}: {record.line[:400]}")
    return Outcome("harmless" if record.verdict == "accepted" else "noticed", record.line[:200])


# --- clocks


def moved(members: Members, name: str, offset_ns: int, random: Random | None = None) -> Members:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["t_wall_ns"] += offset_ns + (random.randrange(-(10**6), 10**6) if random else 0)

    return edit_rows(members, name, change)


@fault("odd collector: clock off", tries=60, quick=5)
def clock_off(bench: Bench) -> Outcome:
    """A source, the labels, the events or several are off, by anything from 2.2 s to 30 years."""
    random = bench.random
    seconds = random.choice((1, -1)) * random.choice(
        (random.uniform(31, 60), 3600, 7200, 86_400, random.uniform(60, 10**9))
    )
    names = random.sample([*FILE.values(), LABELS_FILE, EVENTS_FILE], random.choice((1, 1, 2, 4)))
    members = good(coarse=random.random() < 0.3)
    for name in names:
        members = moved(members, name, round(seconds) * NS_PER_S)
    record, episode = judged(bench, members)
    problems = []
    for source, file in FILE.items():
        if file in names and len(episode.sources[source]):
            problems.append(f"{source} counts")
        if file in names and record.usable and np.any(np.isfinite(columns(episode, source))):
            problems.append(f"{source} has values")
    if record.usable and {LABELS_FILE, EVENTS_FILE} & set(names):
        problems.append("its labels or events lie outside")
    if record.verdict == "accepted":
        problems.append("accepted")
    return verdict_of(problems, record)


@fault("odd collector: some rows off", tries=40, quick=3)
def some_rows_off(bench: Bench) -> Outcome:
    """A few rows of a source are far off: they are left out, or the source is."""
    random = bench.random
    source = random.choice(list(FILE))
    share = random.choice((0.003, 0.009, 0.02, 0.3))
    shifted: list[int] = []

    def change(rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            if random.random() < share:
                row["t_wall_ns"] += random.choice((1, -1)) * random.randrange(33, 10**9) * NS_PER_S
                shifted.append(number)

    record, episode = judged(bench, edit_rows(good(), FILE[source], change))
    n_rows = len(rows_of(good(), FILE[source]))
    whole = len(shifted) > 0.01 * n_rows
    kept = len(episode.sources[source])
    problems = []
    if kept != (0 if whole else n_rows - len(shifted)):
        problems.append(f"{kept} of {n_rows} rows count, {len(shifted)} are off")
    if whole and record.verdict == "accepted":
        problems.append("accepted")
    if record.rows_outside[source] != len(shifted):
        problems.append("not counted")
    return verdict_of(problems, record)


def odd_mono(random: Random) -> Callable[[int, int], int]:
    """What a collector may do to ``t_mono_ns``: (row's number, right value) -> what it says."""
    kind, at, jump = random.randrange(9), random.randrange(300), random.randrange(-(10**12), 10**12)

    def said(number: int, mono: int) -> int:
        return {
            0: -1 if number == at else mono,
            1: mono - jump if number >= at else mono,  # a restart, a suspend
            2: mono // 1_000_000,  # another unit
            3: mono % 2**32,  # a wrap
            4: random.choice((mono, -(2**63), 2**63 - 1)),
            5: random.randrange(2**63),
            6: mono + number * random.randrange(10**9),  # a drift
            7: 0,
            8: mono + random.randrange(10**9),
        }[kind]

    return said


@fault("odd collector: coarse clock", tries=60, quick=5)
def coarse_clock(bench: Bench) -> Outcome:
    """Whole seconds and an odd ``t_mono_ns``: no row leaves the second that it states."""
    random = bench.random
    odd = odd_mono(random)

    def change(rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            row["t_mono_ns"] = odd(number, row["t_mono_ns"])
            if random.random() < 0.001:
                row["t_mono_ns"] = random.choice((None, "x", 1.5))

    members = edit_rows(good(coarse=True), FILE["netflow"], change)
    record, episode = judged(bench, members)
    rows = episode.sources["netflow"]
    later = instants("netflow", rows) - rows.t_wall_ns
    problems = []
    if len(rows) and (later.min() < 0 or later.max() >= NS_PER_S):
        problems.append(f"a row is moved by {later.min()} to {later.max()} ns")
    series = columns(episode, "netflow")
    packets = [path[-1] for path in LAYOUT.fields["netflow"]].index("bytes_out")
    stated = np.zeros(30)
    np.add.at(stated, (rows.t_wall_ns - START_NS) // NS_PER_S, rows.values[:, packets])
    found = series[: 10 * (len(series) // 10), packets].reshape(-1, 10).sum(axis=1)
    if not np.array_equal(found, stated[: len(found)].astype(np.float32)):
        problems.append("a second has other traffic than its rows")
    return verdict_of(problems, record)


# --- values and lines


ODD_VALUES: list[Callable[[Any], Any]] = [
    str, lambda _: None, lambda _: True, lambda v: {"value": v}, lambda v: [v], lambda _: ...,
    lambda _: float("nan"), lambda _: float("inf"), lambda _: "", lambda v: f"{v} kB",
]  # fmt: skip


@fault("odd collector: no values", tries=60, quick=5)
def no_values(bench: Bench) -> Outcome:
    """Fields of a source never hold a number: they are named, and missing, never zeros."""
    random = bench.random
    source = random.choice(list(FILE))
    fields = [path[-1] for path in LAYOUT.fields[source]]
    lost = random.sample(fields, random.choice((1, 2, len(fields))))
    odd = random.choice(ODD_VALUES)

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for field in lost:
                value = odd(row[field])
                if value is ...:
                    row[f"{field}_renamed"] = row.pop(field)
                else:
                    row[field] = value

    record, episode = judged(bench, edit_rows(good(), FILE[source], change))
    series = columns(episode, source)
    problems = []
    if record.verdict == "accepted":
        problems.append("accepted")
    found = series[:, [fields.index(field) for field in lost]]
    if source == "netflow" and len(lost) < len(fields):
        found = found[found != 0]  # no packet, no row: that is a value of every field
    if np.any(np.isfinite(found)):
        problems.append("a lost field has values")
    said = " ".join(record.details)
    if source not in said or (len(lost) < len(fields) and not all(f in said for f in lost)):
        problems.append("not named")
    return verdict_of(problems, record)


@fault("odd collector: repeated lines", tries=40, quick=3)
def repeated_lines(bench: Bench) -> Outcome:
    """Lines come again, anywhere: they count once, and over 1% of them degrade."""
    random = bench.random
    source = random.choice(list(FILE))
    share = random.choice((0.002, 0.1, 1.0))
    again = [0]

    def change(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        more = [line for line in lines if random.random() < share]
        again[0] = len(more)
        lines = [*lines, *more]
        if random.random() < 0.5:
            random.shuffle(lines)
        return b"".join(lines)

    record, episode = judged(bench, edit(good(), FILE[source], change))
    _, sound = judged(bench, good())
    problems = []
    if not np.array_equal(columns(episode, source), columns(sound, source), equal_nan=True):
        problems.append("another series")
    if record.rows_repeated[source] != again[0]:
        problems.append(f"{record.rows_repeated[source]} counted, {again[0]} repeated")
    if (again[0] > 0.01 * record.rows[source]) != (record.verdict != "accepted"):
        problems.append(record.verdict)
    return verdict_of(problems, record)


@fault("odd collector: another version", tries=20, quick=2)
def another_version(bench: Bench) -> Outcome:
    """A ``schema_version`` that nobody has defined here, and a meta that is not of this episode."""
    random = bench.random
    odd: dict[str, list[Any]] = {
        "schema_version": [0, 2, 99, -1, "1", 1.0, None, True, 2**70],
        "episode_id": [ulid(5), ID.lower(), "", None],
        "host_id": ["lab-b", "LAB-A", "", 3],
        "started_at_wall_ns": [START_NS + DAY_NS, 0, "0", None, 1.5],
        "ended_at_wall_ns": [START_NS - DAY_NS, START_NS, 0, None, True],
    }
    name = random.choice(list(odd))
    record, _ = judged(bench, edit_meta(good(), {name: random.choice(odd[name])}))
    return verdict_of(["usable"] if record.usable else [], record)


# --- the machine


def artifacts(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


FAULTS_OF_MACHINES = (errno.ESTALE, errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EACCES,
    errno.ENOMEM, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENFILE, errno.EPERM)  # fmt: skip


PLACES: dict[str, tuple[str, Callable[..., Any]]] = {
    "open": ("episodes.archive.os.open", os.open),
    "fstat": ("episodes.archive.os.fstat", os.fstat),
    "read": ("episodes.archive._read", archive._read),
}


@fault("machine: reading fails", tries=40, quick=4)
def reading_fails(bench: Bench) -> Outcome:
    """Opening or reading archives fails some times: right in the end, or nothing is written."""
    random = bench.random
    number, times = random.choice(FAULTS_OF_MACHINES), random.choice((1, 2, 3, 5, 1000))
    call = random.choice(("open", "fstat", "read"))
    left = [times]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def work(target: Any, *rest: Any, **named: Any) -> Any:
            path = target if isinstance(target, str | Path) else _path_of(target)
            if str(path).endswith(".tar.zst") and left[0] > 0:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return real(target, *rest, **named)

        return work

    store = StoreBuilder(bench.folder / "store")
    store.add(members=good(), episode_id=ID)
    out = bench.folder / "out"
    episodes = list_store(store.root).episodes
    if random.random() < 0.5:  # something is there already, made under another policy
        ingest_batch(episodes, out, ValidationPolicy(min_rows=99), LAYOUT)
    before = artifacts(out)
    where, real = PLACES[call]
    with patch(where, failing(real)), patch("episodes.environment.PAUSES_S", (0, 0, 0)):
        try:
            made = ingest_batch(episodes, out, ValidationPolicy(), LAYOUT)
        except MachineError as error:
            if times <= 3:
                return Outcome("wrong", f"given up after {times} times: {error}")
            same = artifacts(out) == before
            return Outcome("noticed" if same else "lost", str(error))
    verdicts = made["validation_index"].facts["verdicts"]
    if verdicts["accepted"] != 1 or times > 3:
        return Outcome("wrong", f"{times} times {os.strerror(number)}: {json.dumps(verdicts)}")
    return Outcome("harmless", f"{times} times {os.strerror(number)}")


def _path_of(handle: Any) -> str:
    try:
        number = handle if isinstance(handle, int) else handle.fileno()
        return str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return ""


@fault("machine: too many open files", tries=3, quick=1)
def too_many_files(bench: Bench) -> Outcome:
    """No file can be opened any more, in earnest."""
    store = StoreBuilder(bench.folder / "store")
    store.add(members=good(), episode_id=ID)
    (stored,) = list_store(store.root).episodes
    judged(bench, good())  # kernels are loaded before no file can be opened

    def work() -> str:
        with patch("episodes.environment.PAUSES_S", (0, 0, 0)):
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
            try:
                record, _ = validate(stored, ValidationPolicy(), LAYOUT.fields)
                return record.verdict
            except MachineError as error:
                return str(error)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))

    ended = apart(work, LIMITS)
    if ended.bad:
        return ended.bad
    noticed = "Too many open files" in ended.result
    return Outcome("noticed" if noticed else "wrong", ended.result)


@fault("machine: no memory", tries=5, quick=1)
def no_memory(bench: Bench) -> Outcome:
    """There is too little memory for the archive."""
    judged(bench, good())
    rows = b"".join(good()[FILE["guest"]] for _ in range(300))
    store = StoreBuilder(bench.folder / "large")
    store.add(members=edit(good(), FILE["guest"], rows), episode_id=ID)
    (stored,) = list_store(store.root).episodes

    def work() -> str:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        most = pages * resource.getpagesize() + (5 + 12 * bench.number) * 2**20
        _, before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most, before))
        try:
            with patch("episodes.environment.PAUSES_S", (0,)):
                record, _ = validate(stored, ValidationPolicy(), LAYOUT.fields)
            return record.verdict + " " + " ".join(record.reasons)
        except MachineError:
            return "MachineError"
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (before, before))

    ended = apart(work, replace(LIMITS, most_bytes=10**10))
    if ended.bad:
        return ended.bad
    verdict: dict[str, Verdict] = {"MachineError": "noticed", "degraded repeated_rows": "harmless"}
    return Outcome(verdict.get(ended.result, "wrong"), ended.result)
