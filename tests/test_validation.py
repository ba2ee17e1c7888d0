"""Every verdict and every reason, each from a defect planted in a real archive of a real store."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    COMMIT,
    DAY_NS,
    REMOVED,
    START_NS,
    Added,
    Members,
    StoreBuilder,
    compress,
    edit,
    edit_meta,
    edit_rows,
    entries_of,
    entry,
    jsonl,
    make_members,
    pack,
    pack_tar,
    rows_of,
    sha256,
    ulid,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import episodes.archive
import episodes.environment
import episodes.reading
import episodes.store
import episodes.validation
from episodes.archive import ArchiveError, read_members, read_packed
from episodes.environment import MachineError
from episodes.format import NS_PER_S, PHASES, SOURCES, batch_key, episode_time_ms, is_episode_id
from episodes.jsonl import MAX_LINE_BYTES, parse_objects, parse_rows
from episodes.store import StoreError, list_store
from episodes.validation import (
    VERDICT_OF_REASON,
    EpisodeRecord,
    ValidationPolicy,
    summary_line,
    validate,
)
from features.registry import LAYOUT

DURATION_S = 20.0
ID = ulid(START_NS // 1_000_000)
LABELS, EVENTS, META, NETFLOW = "labels.jsonl", "events.jsonl", "meta.json", "netflow.jsonl"
POLLED = ("proc", "qmp", "guest")
FIELD_NAMES = {name: [path[0] for path in LAYOUT.fields[name]] for name in POLLED}
FILE = {name: source.file for name, source in SOURCES.items()}


def made(**kwargs: Any) -> Members:
    """The good episode, built otherwise (see ``make_members``)."""
    return make_members("lab-a", ID, **{"duration_s": DURATION_S} | kwargs)


@cache
def good() -> Members:
    """An episode that is accepted: 20 s, five phases of 4 s."""
    return made()


def judge(
    store: StoreBuilder, added: Added, policy: ValidationPolicy | None = None
) -> EpisodeRecord:
    listing = list_store(store.root)
    stored = next(
        e
        for e in listing.episodes
        if (e.host_id, e.episode_id) == (added.host_id, added.episode_id)
    )
    return validate(stored, policy or ValidationPolicy(), LAYOUT.fields)[0]


def judge_planted(store: StoreBuilder, plant: Plant) -> EpisodeRecord:
    return judge(store, plant(store, pytest.MonkeyPatch()))


def judge_members(
    store: StoreBuilder, members: Members, policy: ValidationPolicy | None = None, **add: Any
) -> EpisodeRecord:
    return judge(store, store.add(members=members, episode_id=ID, **add), policy)


@pytest.fixture
def store(tmp_path: Path) -> StoreBuilder:
    return StoreBuilder(tmp_path / "store")


# --- one table: what is planted, and which reasons it has to lead to

REASONS_OF_THE_ISSUE = {
    "rejected": {
        "tar_hash_mismatch",
        "file_hash_mismatch",
        "unsafe_archive",
        "broken_archive",
        "renamed_archive",
        "schema",
        "labels_out_of_order",
        "unknown_label",
        "failed_label",
        "infection_without_event",
        "outside_episode",
        "no_trusted_clock",
        "too_short",
        "too_few_rows",
        "conflicting_contents",
    },
    "errored": {"listed_file_absent", "io_error", "unforeseen_error"},
    "degraded": {
        "source_absent",
        "rows_missing",
        "source_gap",
        "source_offset",
        "field_absent",
        "repeated_rows",
        "clock_step",
        "netflow_absent",
        "not_in_index",
    },
}
VERDICT_OF = {reason: v for v, reasons in REASONS_OF_THE_ISSUE.items() for reason in reasons}


def worst(verdicts: Iterable[str]) -> str:
    return min(verdicts, key=("rejected", "errored", "degraded").index)


Change = Callable[[Members], Members]
Plant = Callable[[StoreBuilder, pytest.MonkeyPatch], Added]


def holding(*changes: Change, **add: Any) -> Plant:
    """Plant: the good episode with its members changed."""

    def plant(store: StoreBuilder, _: pytest.MonkeyPatch) -> Added:
        members = good()
        for change in changes:
            members = change(members)
        return store.add(members=members, episode_id=ID, **add)

    return plant


def making(**kwargs: Any) -> Plant:
    """Plant: the good episode, built otherwise."""
    return holding(lambda _: made(**kwargs))


def archived(
    *entries: tuple[tarfile.TarInfo, bytes], limits: dict[str, int] | None = None
) -> Plant:
    """Plant: the good episode's archive with further entries, and low limits."""

    def plant(store: StoreBuilder, patch: pytest.MonkeyPatch) -> Added:
        for name, limit in (limits or {}).items():
            patch.setattr(episodes.archive, name, limit)
        packed = compress(pack_tar([*entries_of(ID, good()), *entries]))
        return store.add(packed=packed, episode_id=ID)

    return plant


def packed_as(damage: Callable[[bytes], bytes], of: Callable[[], bytes] | None = None) -> Plant:
    """Plant: the bytes of the archive damaged before they reached the index."""

    def plant(store: StoreBuilder, _: pytest.MonkeyPatch) -> Added:
        packed = of() if of else pack(ID, good())
        return store.add(packed=damage(packed), episode_id=ID)

    return plant


def plain_tar() -> bytes:
    return pack_tar(entries_of(ID, good()))


def tar_from_dot() -> bytes:
    """What ``tar --create .`` makes in the folder above the episode's."""
    files = [entry(f"./{ID}/{name}", content) for name, content in good().items()]
    return pack_tar([entry("./", type=DIR), entry(f"./{ID}/", type=DIR), *files])


def header_at(tar: bytes, name: str) -> int:
    """Where a member's header stands."""
    return tar.index(f"{ID}/{name}\0".encode())


def lose(name: str) -> Change:
    """Leave a file out of the archive, but not out of ``meta.json``."""
    return lambda members: {key: content for key, content in members.items() if key != name}


def set_in_row(name: str, number: int, **values: Any) -> Change:
    """Set (or remove) values in one row of a JSON-lines file; ``number`` counts from 1."""

    def change(rows: list[dict[str, Any]]) -> None:
        for key, value in values.items():
            if value is REMOVED:
                del rows[number - 1][key]
            else:
                rows[number - 1][key] = value

    return lambda members: edit_rows(members, name, change)


def set_line(name: str, number: int, line: bytes) -> Change:
    """Replace one line of a file; ``number`` counts from 1."""

    def change(content: bytes) -> bytes:
        lines = content.split(b"\n")
        return b"\n".join([*lines[: number - 1], line, *lines[number:]])

    return lambda members: edit(members, name, change)


def thin(**counts: int) -> Change:
    """Leave so many rows of each source, evenly spread, the first and the last among them."""

    def change(members: Members) -> Members:
        for source, count in counts.items():
            rows = rows_of(members, FILE[source])
            kept = np.linspace(0, len(rows) - 1, count).astype(int)
            members = edit(members, FILE[source], jsonl(rows[i] for i in kept))
        return members

    return change


def shift(name: str, seconds: float, rows: slice = slice(None)) -> Change:
    """Move rows of one JSON-lines file in time, on both clocks' wall only."""

    def change(lines: list[dict[str, Any]]) -> None:
        for row in lines[rows]:
            row["t_wall_ns"] += round(seconds * NS_PER_S)

    return lambda members: edit_rows(members, name, change)


def shift_all(seconds: float, *names: str) -> Change:
    def change(members: Members) -> Members:
        for name in names:
            members = shift(FILE[name], seconds)(members)
        return members

    return change


def set_fields(name: str, value: Any, *fields: str, rows: slice = slice(None)) -> Change:
    """Give fields of a source (without names: all that channels need) one value in many rows."""

    def change(lines: list[dict[str, Any]]) -> None:
        for row in lines[rows]:
            for field in fields or [path[0] for path in LAYOUT.fields[name]]:
                if value is REMOVED:
                    row.pop(field, None)
                else:
                    row[field] = str(row[field]) if value is str else value

    return lambda members: edit_rows(members, FILE[name], change)


def repeat(name: str, count: int) -> Change:
    """Write the first rows of a source a second time, at the end of its file."""

    def change(content: bytes) -> bytes:
        return content + b"".join(content.splitlines(keepends=True)[:count])

    return lambda members: edit(members, FILE[name], change)


def step_back(name: str, seconds: float) -> Change:
    """The wall clock of a source steps back in the middle of the episode."""
    return shift(FILE[name], -seconds, slice(100, None))


def drop_file(name: str) -> Change:
    return lambda members: edit(members, name, None)


def empty(name: str) -> Change:
    return lambda members: edit(members, name, b"")


def swap_rows(name: str, i: int, j: int) -> Change:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[i], rows[j] = rows[j], rows[i]

    return lambda members: edit_rows(members, name, change)


def set_meta(**values: Any) -> Change:
    """Set values of ``meta.json``; two underscores stand for a dot."""
    changes = {name.replace("__", "."): value for name, value in values.items()}
    return lambda members: edit_meta(members, changes)


def meta_is(content: bytes) -> Plant:
    return holding(lambda members: edit(members, META, content))


def labelled(*phases: tuple[str, float]) -> Plant:
    return making(phases=phases)


def seen(*events: tuple[str, float]) -> Plant:
    """Plant: ``infecting`` from 8 s, ``infected_running`` from 12 s, and these events only."""
    return making(events=events)


def link_to_archive(store: StoreBuilder, _: pytest.MonkeyPatch) -> Added:
    added = store.add(members=good())
    target = store.root / "elsewhere"
    added.path.rename(target)
    added.path.symlink_to(target)
    return added


def bomb(store: StoreBuilder, patch: pytest.MonkeyPatch) -> Added:
    """64 MiB of zeros in a member nobody reads: a few kB on disk."""
    patch.setattr(episodes.archive, "MAX_UNPACKED_BYTES", 8 * 2**20)
    zeros = entry(f"{ID}/network.pcap", bytes(64 * 2**20))
    packed = compress(pack_tar([*entries_of(ID, good()), zeros]))
    assert len(packed) < 2**20
    return store.add(packed=packed, episode_id=ID)


def sparse(store: StoreBuilder, patch: pytest.MonkeyPatch) -> Added:
    """A member of 32 MiB with 3 bytes in the archive: its holes never pass the decompressor."""
    patch.setattr(episodes.archive, "MAX_UNPACKED_BYTES", 8 * 2**20)
    hole = {
        "GNU.sparse.name": f"{ID}/{NETFLOW}",
        "GNU.sparse.size": str(32 * 2**20),
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.map": "0,3",
    }
    rest = edit(good(), NETFLOW, None)
    holed = entry(f"{ID}/{NETFLOW}", b"{}\n", pax_headers=hole)
    return store.add(packed=compress(pack_tar([*entries_of(ID, rest), holed])), episode_id=ID)


def two_shas(store: StoreBuilder, _: pytest.MonkeyPatch) -> Added:
    added = store.add(members=good())
    store.add_index_row(added.host_id, added.episode_id, b"other content")
    return added


def two_hosts(store: StoreBuilder, _: pytest.MonkeyPatch) -> Added:
    store.add("lab-b", make_members("lab-b", ID, duration_s=DURATION_S))
    return store.add("lab-a", good())


def row_without_file(store: StoreBuilder, _: pytest.MonkeyPatch) -> Added:
    added = store.add(members=good())
    added.path.unlink()
    return added


def folder_for_a_file(store: StoreBuilder, _: pytest.MonkeyPatch) -> Added:
    added = row_without_file(store, _)
    added.path.mkdir()
    return added


def pipe_for_a_file(store: StoreBuilder, _: pytest.MonkeyPatch) -> Added:
    added = row_without_file(store, _)
    os.mkfifo(added.path)
    return added


def explode(*_: object) -> None:
    raise ZeroDivisionError("planted")


EXPLODES_AT = explode.__code__.co_firstlineno + 1


def exploding_parser(store: StoreBuilder, patch: pytest.MonkeyPatch) -> Added:
    patch.setattr(episodes.reading, "parse_rows", explode)
    return store.add(members=good())


def exploding_check(store: StoreBuilder, patch: pytest.MonkeyPatch) -> Added:
    patch.setattr(episodes.validation, "_check_sources", explode)
    return store.add(members=good())


FIFO, CHR, BLK = tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE
SYM, LNK, DIR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
EXPLOSION = re.escape(f"ZeroDivisionError at test_validation.py:{EXPLODES_AT}: planted")

# reasons -> what is planted -> how, and what the details have to say about it
DEFECTS: dict[str, dict[str, Plant | tuple[Plant, str]]] = {
    "tar_hash_mismatch": {"index": (holding(index={"sha256": "0" * 64}), "000000000000")},
    "file_hash_mismatch": {
        name: (holding(lambda m, n=name: m | {n: m[n] + b"\n"}), name)
        for name in (LABELS, EVENTS, *FILE.values())
    },
    # what no episode has any business holding
    "unsafe_archive": {
        "symlink": archived(entry(f"{ID}/x", type=SYM, linkname="/etc/passwd")),
        "hard link": archived(entry(f"{ID}/x", type=LNK, linkname=f"{ID}/{META}")),
        "link in place of a file": archived(entry(f"{ID}/{META}", type=SYM, linkname="x")),
        "fifo": archived(entry(f"{ID}/x", type=FIFO)),
        "character device": archived(entry(f"{ID}/x", type=CHR)),
        "block device": archived(entry(f"{ID}/x", type=BLK)),
        "absolute name": (archived(entry("/etc/x")), "must be in the folder .*, got '/etc/x'"),
        "absolute name within": (archived(entry(f"/{ID}/x")), "must be in the folder"),
        "dot-dot": (archived(entry("../x")), "must be in the folder"),
        "dot-dot first": (archived(entry(f"../{ID}/x")), "must be in the folder"),
        "dot-dot within": (archived(entry(f"{ID}/../x")), "must be in the folder"),
        "dot-dot last": (archived(entry(f"{ID}/..")), "must be in the folder"),
        "no folder": (archived(entry("x")), "must be in the folder"),
        "another folder": (archived(entry(f"{ulid(1)}/x")), "must be in the folder"),
        "file in a folder within": (archived(entry(f"{ID}/a/x")), "must be in the folder"),
        "folder within": archived(entry(f"{ID}/a", type=DIR)),
        "member twice": (archived(entry(f"{ID}/{META}", b"{}")), "meta.json appears twice"),
        "archive is a link": (link_to_archive, "symlinks are not followed"),
        "bomb": (bomb, "unpacked size must be at most"),
        "sparse member": sparse,
        "large archive": (archived(limits={"MAX_ARCHIVE_BYTES": 999}), "999"),
        "large files": (archived(limits={"MAX_READ_BYTES": 99_999}), "at most 99,999 bytes"),
        "many members": (archived(limits={"MAX_MEMBERS": 7}), "7 members"),
        "endless extended headers": packed_as(
            lambda tar: compress(tar[:1024] * 2000 + tar[1024:]),
            lambda: pack_tar([entry(f"{ID}/{META}", b"{}", pax_headers={"a": "b"})]),
        ),
    },
    "renamed_archive": {
        "another episode": (
            packed_as(lambda _: pack(ulid(1), good())),
            f"rename it to {ulid(1)}.tar.zst",
        ),
        "from a dot": (
            packed_as(
                lambda _: compress(
                    pack_tar([entry(".", type=DIR), entry(f"./{ulid(1)}/{META}", b"{}")])
                )
            ),
            f"its content is episode {ulid(1)}",
        ),
    },
    # what is no archive, or no longer
    "broken_archive": {
        "empty": packed_as(lambda _: b""),
        "garbage": packed_as(lambda _: bytes(range(256)) * 9),
        "no zstd": packed_as(lambda tar: tar, plain_tar),
        "no tar": packed_as(lambda _: compress(b"hello " * 999)),
        "zstd cut in half": packed_as(lambda packed: packed[: len(packed) // 2]),
        "zstd cut by a byte": packed_as(lambda packed: packed[:-1]),
        "zstd checksum": packed_as(lambda packed: packed[:-1] + bytes([packed[-1] ^ 1])),
        "garbage behind": packed_as(lambda packed: packed + b"garbage"),
        "tar cut in a member": packed_as(
            lambda tar: compress(tar[: header_at(tar, NETFLOW) + 1000]), plain_tar
        ),
        "tar cut between members": packed_as(
            lambda tar: compress(tar[: header_at(tar, NETFLOW)]), plain_tar
        ),
        "header damaged in the middle": packed_as(
            lambda tar: compress(tar.replace(f"{ID}/netflow".encode(), b"?" * 34)), plain_tar
        ),
    },
    # labels
    "labels_out_of_order": {
        "first two swapped": (holding(swap_rows(LABELS, 0, 1)), "labels.jsonl: label 2"),
        "1 ns": (labelled(("clean", 0), ("armed", 5), ("clean", 4.999999999)), "label 3"),
    },
    "unknown_label": {
        "another name": (labelled(("clean", 0), ("exfiltrating", 5)), "'exfiltrating'"),
        "upper case": (labelled(("Clean", 0)), "'Clean'"),
        "empty": (labelled(("clean", 0), ("", 5)), "''"),
    },
    "failed_label": {
        "at the end": (labelled(("clean", 0), ("failed", 18)), "'failed'"),
        "all along": labelled(("failed", 0)),
    },
    "infection_without_event": {
        "no exploit_fire": (seen(("session_open", 11)), "^infecting with no exploit_fire"),
        "no session_open": (
            seen(("exploit_fire", 7), ("session_open_timeout", 11)),
            "^infected_running with no session_open",
        ),
        "before a relapse": making(
            phases=[("clean", 0), ("infecting", 5), ("clean", 9), ("infecting", 12)],
            events=[("exploit_fire", 12)],
        ),
        "exploit_fire 1 ns late": seen(("exploit_fire", 8.000000001), ("session_open", 11)),
        "session_open 1 ns late": seen(("exploit_fire", 7), ("session_open", 12.000000001)),
    },
    "infection_without_event infection_without_event": {
        "no event": (seen(), "exploit_fire.*session_open"),
        "no events file": holding(drop_file(EVENTS)),
        "events too late": seen(("exploit_fire", 13), ("session_open", 13)),
    },
    # how much there is
    "too_short": {
        "14.9 s": (making(duration_s=14.9), "lasts 14.9 s; must be at least 15 s"),
    },
    "too_few_rows rows_missing rows_missing rows_missing netflow_absent": {
        "99 rows": (
            holding(drop_file(NETFLOW), thin(proc=33, qmp=33, guest=33)),
            "99 telemetry rows; at least 100 are needed",
        ),
    },
    "conflicting_contents": {
        "two hashes in the index": (two_shas, "2 different archives"),
        "two hosts": (two_hosts, "lab-b"),
    },
    # what could not be decided
    "listed_file_absent": {
        "archive": (row_without_file, f"index.jsonl.*{ID}.tar.zst is not on disk"),
        "labels": (holding(lose(LABELS)), "meta.json lists labels.jsonl"),
    },
    "listed_file_absent netflow_absent": {"netflow": holding(lose(NETFLOW))},
    "listed_file_absent source_absent": {
        name: (holding(lose(FILE[name])), f"meta.json lists {FILE[name]}") for name in POLLED
    },
    "io_error": {
        "a folder in its place": (folder_for_a_file, "Is a directory"),
        "a pipe in its place": (pipe_for_a_file, f"{ID}.tar.zst: Not a regular file"),
    },
    "unforeseen_error": {
        "in reading": (exploding_parser, EXPLOSION),
        "in a check": (exploding_check, EXPLOSION),
    },
    # clocks
    "outside_episode": {
        "a label late": (labelled(("clean", 0), ("clean", 22.1)), "labels.jsonl: 1 of 2 rows"),
        "a label early": (labelled(("clean", -2.1), ("clean", 5)), "labels.jsonl: 1 of 2 rows"),
        "an event late": (
            seen(("exploit_fire", 7), ("session_open", 11), ("lunch", 22.1)),
            "events.jsonl: 1 of 3 rows .* the first is 'lunch'",
        ),
        "events an hour early": (
            holding(shift(EVENTS, -3600)),
            "events.jsonl: 4 of 4 rows lie more than 2 s outside",
        ),
    },
    "source_absent": {
        f"{name} off by {seconds} s": (
            holding(shift_all(seconds, name)),
            f"{name}: {count}of 201 rows lie more than 2 s outside .* its clock is wrong",
        )
        for name in POLLED
        for seconds, count in ((3600, "201 "), (-3600, "201 "), (2.3, "[34] "), (-2.4, "4 "))
    }
    | {
        f"{name} of no values: {label}": (
            holding(set_fields(name, value)),
            f"{name}: no usable value in 201 rows",
        )
        for name in POLLED
        for label, value in (("text", str), ("null", None), ("true", True), ("none", REMOVED))
    },
    "netflow_absent": {
        **{
            f"netflow off by {seconds} s": (
                holding(shift_all(seconds, "netflow")),
                "netflow: .* its clock is wrong",
            )
            for seconds in (3600, -3600, 4.5)
        },
        "netflow of no values": (holding(set_fields("netflow", str)), "netflow: no usable value"),
    },
    "source_absent source_absent source_absent no_trusted_clock": {
        "polled an hour off": holding(shift_all(3600, *POLLED)),
        "two an hour off, one of no values": holding(
            shift_all(-3600, "proc", "qmp"), set_fields("guest", str)
        ),
    },
    "too_few_rows source_absent source_absent source_absent netflow_absent no_trusted_clock": {
        "all an hour off": holding(shift_all(-3600, *FILE)),
    },
    "too_few_rows source_absent source_absent source_absent netflow_absent": {
        "no source has a value": (
            holding(*(set_fields(name, str) for name in FILE)),
            "0 telemetry rows; at least 100 are needed",
        ),
    },
    "clock_step": {
        f"{name} steps back": (
            holding(step_back(name, 1.9)),
            f"{name}: wall time falls by 1.8 s while t_mono_ns rises",
        )
        for name in POLLED
    },
    # values and lines
    "field_absent": {
        **{
            f"{name}: {label}": (
                holding(set_fields(name, value, LAYOUT.fields[name][0][0])),
                f"^{name}: no usable value for {LAYOUT.fields[name][0][0]}$",
            )
            for name in FILE
            for label, value in (("text", str), ("null", None), ("none", REMOVED))
        },
        "two": (
            holding(set_fields("guest", None, "forks", "load_1m")),
            "^guest: no usable value for forks, load_1m$",
        ),
    },
    "repeated_rows": {
        **{
            f"3 of {name}": (holding(repeat(name, 3)), f"{name}: 3 of [0-9]+ lines repeat")
            for name in POLLED
        },
        "all of netflow": (holding(repeat("netflow", 999)), "netflow: .* lines repeat"),
        "every row of proc, side by side": (
            holding(
                lambda m: edit(
                    m,
                    FILE["proc"],
                    lambda c: b"".join(line * 2 for line in c.splitlines(keepends=True)),
                )
            ),
            "proc: 201 of 402 lines repeat",
        ),
    },
    # what is missing from a usable one
    "source_absent ": {
        **{name: (making(without=(name,)), f"{name}: no rows") for name in POLLED},
        **{f"{name} empty": (holding(empty(FILE[name])), name) for name in POLLED},
    },
    "rows_missing": {
        **{f"159 of 200 of {name}": (holding(thin(**{name: 159})), f"{name}: ") for name in POLLED},
        **{
            f"42 rows of {name} with few values": (
                holding(
                    set_fields(name, None, *fields[: len(fields) // 2 + 1], rows=slice(1, -1, 5)),
                    set_fields(name, None, *fields[: len(fields) // 2 + 1], rows=slice(3, 15, 5)),
                ),
                f"^{name}: 79% of the rows expected",
            )
            for name, fields in FIELD_NAMES.items()
        },
    },
    "source_gap": {
        **{
            name: (making(drop={name: ((5, 7.0),)}), f"{name}: 2.1 s without a row")
            for name in POLLED
        },
        "rows without values": (
            holding(set_fields("guest", str, rows=slice(50, 70))),
            "^guest: 2.1 s without a row",
        ),
    },
    "source_offset": {
        **{f"{s} late": (making(drop={s: ((0, 2.1),)}), f"{s}: its first row") for s in POLLED},
        **{f"{s} ends": (making(drop={s: ((18, 99),)}), f"{s}: its last row") for s in POLLED},
    },
    "netflow_absent ": {
        "no file": (making(without=("netflow",)), "netflow: no rows"),
        "no row": holding(empty(NETFLOW)),
    },
    "not_in_index": {"no row": (holding(indexed=False), "without a row in index.jsonl")},
}

# --- the schema: meta, labels, events and every telemetry row, the file and the line named

BEYOND_INT64 = 2**63
META_KINDS = {
    "episode_id": 1,
    "host_id": None,
    "schema_version": "1",
    "started_at_wall_ns": 1.5,
    "ended_at_wall_ns": "soon",
    "sample.name": 7,
    "sample.profile": None,
    "sample.sha256": [],
    "experiment.tier": True,
    "files": [],
}
BAD_TIMES = {"none": REMOVED, "null": None, "fraction": 1.0, "text": "1", "boolean": True} | {
    "beyond 64 bits": BEYOND_INT64
}
BAD_LINES = {"no JSON": b'{"t_wall_ns":', "no object": b"[1]", "no text": b'{"\xff": 1}'}
NO_BOOLEAN = "available_in_deployment is missing or not a boolean"
BAD_ROWS = {
    "no mono": ({"t_mono_ns": REMOVED}, "t_mono_ns is missing or not an integer"),
    "null mono": ({"t_mono_ns": None}, "t_mono_ns is missing or not an integer"),
    "no source": ({"source": REMOVED}, "source must be"),
    "another source": ({"source": "nobody"}, "source must be"),
    "deployment a number": (
        {"available_in_deployment": 1},
        "available_in_deployment is missing or not a bool",
    ),
    "no deployment": (
        {"available_in_deployment": REMOVED},
        "available_in_deployment is missing or not a bool",
    ),
}


def moments_defects(name: str, key: str) -> dict[str, tuple[Plant, str]]:
    """Defects of the fourth line of the labels or the events."""
    lines = {
        what: (holding(set_line(name, 4, line)), f"{name}: line 4: not a JSON object")
        for what, line in BAD_LINES.items()
    }
    times = {
        f"time: {what}": (
            holding(set_in_row(name, 4, t_wall_ns=value)),
            f"{name}: (line|row) 4: t_wall_ns is missing or not an integer",
        )
        for what, value in BAD_TIMES.items()
    }
    names = {
        f"{key}: {value}": (
            holding(set_in_row(name, 4, **{key: value})),
            f"{name}: (line|row) 4: {key} is missing or not a string",
        )
        for value in (REMOVED, None, 3)
    }
    return {f"{name}: {what}": plant for what, plant in (lines | times | names).items()}


def telemetry_defects(name: str) -> dict[str, tuple[Plant, str]]:
    """Defects of the seventh line of a telemetry file."""
    lines = {
        what: (holding(set_line(name, 7, line)), f"{name}: line 7: not a JSON object")
        for what, line in BAD_LINES.items()
    }
    times = {
        f"time: {what}": (
            holding(set_in_row(name, 7, t_wall_ns=value)),
            f"{name}: line 7: t_wall_ns is missing or not an integer",
        )
        for what, value in BAD_TIMES.items()
    }
    rows = {
        what: (holding(set_in_row(name, 7, **values)), f"{name}: line 7: {why}")
        for what, (values, why) in BAD_ROWS.items()
    }
    return {f"{name}: {what}": plant for what, plant in (lines | times | rows).items()}


DEFECTS |= {
    "schema": {
        **{
            f"meta without {name}": (holding(set_meta(**{name: REMOVED})), f"meta.json: {name}")
            for name in META_KINDS
        },
        **{
            f"meta: {name} {value}": (holding(set_meta(**{name: value})), f"meta.json: {name}")
            for name, value in META_KINDS.items()
        },
        "meta absent": (holding(lose(META)), "meta.json: missing"),
        "meta cut": (meta_is(b'{"episode_id":'), "meta.json: not JSON"),
        "meta no text": (meta_is(b"\xff\xfe\x00"), "meta.json: not JSON"),
        "meta too deep": (meta_is(b"[" * 100_000), "meta.json: not JSON"),
        "meta a list": (meta_is(b"[]"), "meta.json: must be a JSON object, got list"),
        "a file's hash a number": (
            holding(set_meta(**{f"files/{LABELS}/sha256": 5})),
            "meta.json: files.labels.jsonl.sha256",
        ),
        "a file's facts null": (
            holding(set_meta(**{f"files/{LABELS}": None})),
            "meta.json: files.labels.jsonl.sha256",
        ),
        "another episode's": (holding(set_meta(episode_id=ulid(5))), f"'{ulid(5)}'.*'{ID}'"),
        "another host's": (holding(set_meta(host_id="lab-b")), "'lab-b', stored as 'lab-a'"),
        **{
            f"version {version}": (
                holding(set_meta(schema_version=version), index={"schema_version": version}),
                f"schema_version must be 1, got {version}",
            )
            for version in (0, 2, 99, -1)
        },
        "another version in the index": (
            holding(index={"schema_version": 2}),
            "is 1, the index says 2",
        ),
        "start beyond 64 bits": (
            holding(set_meta(started_at_wall_ns=-BEYOND_INT64 - 1)),
            "meta.json: started_at_wall_ns",
        ),
        "end beyond 64 bits": (
            holding(set_meta(ended_at_wall_ns=BEYOND_INT64)),
            "meta.json: ended_at_wall_ns",
        ),
        "no labels file": (holding(drop_file(LABELS)), "labels.jsonl: missing"),
        "no label": (holding(empty(LABELS)), "labels.jsonl: no label"),
        **moments_defects(LABELS, "phase"),
        **moments_defects(EVENTS, "event"),
        "a label below a blank line": (
            holding(set_in_row(LABELS, 4, phase=1), set_line(LABELS, 1, b"")),
            "labels.jsonl: (line|row) 4: phase is missing or not a string",
        ),
        **{
            what: plant
            for file_name in FILE.values()
            for what, plant in telemetry_defects(file_name).items()
        },
    },
    "schema rows_missing rows_missing rows_missing": {
        "a year long": (
            holding(set_meta(ended_at_wall_ns=START_NS + 365 * DAY_NS)),
            "meta.json: 31536000 s, over 10800 s",
        ),
    },
    "too_short outside_episode outside_episode too_few_rows source_absent source_absent "
    "source_absent netflow_absent no_trusted_clock": {
        "ends before it starts": holding(set_meta(ended_at_wall_ns=START_NS - 3 * NS_PER_S)),
    },
}

CASES = [
    pytest.param(
        reasons.split(),
        *(planted if isinstance(planted, tuple) else (planted, "")),
        id=f"{reasons.split()[0]}: {label}",
    )
    for reasons, planted_by_label in DEFECTS.items()
    for label, planted in planted_by_label.items()
]


def test_the_reasons_are_those_of_the_issue() -> None:
    assert VERDICT_OF == VERDICT_OF_REASON


def test_every_reason_has_a_planted_defect_of_its_own() -> None:
    assert {reason for reasons in DEFECTS for reason in reasons.split()} == {*VERDICT_OF_REASON}
    alone = {reasons.strip() for reasons in DEFECTS if len(reasons.split()) == 1}
    assert alone == {*VERDICT_OF_REASON} - {
        "too_few_rows",
        "no_trusted_clock",
    }  # other reasons come first


@pytest.mark.parametrize(("reasons", "plant", "detail"), CASES)
def test_a_planted_defect_is_found(
    reasons: list[str],
    plant: Plant,
    detail: str,
    store: StoreBuilder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = judge(store, plant(store, monkeypatch))
    assert sorted(record.reasons) == sorted(reasons)
    assert record.verdict == worst(VERDICT_OF[reason] for reason in reasons)
    assert record.usable == (record.verdict in ("accepted", "degraded"))
    assert len(record.details) == len(record.reasons)
    assert re.search(detail, "; ".join(record.details)), record.details


# --- what is no defect

SOUND: dict[str, Plant] = {
    "as built": holding(),
    "coarse netflow clock": making(coarse_netflow=True),
    "clean from end to end": labelled(("clean", 0.0)),
    "a phase repeated": labelled(("clean", 0.0), ("clean", 5.0), ("armed", 9.0)),
    "two labels at one instant": labelled(("clean", 0.0), ("armed", 5.0), ("dormant", 5.0)),
    "a relapse with one event": making(
        phases=[("clean", 0), ("infecting", 5), ("clean", 9), ("infecting", 12)],
        events=[("exploit_fire", 5)],
    ),
    "events at their labels": seen(("exploit_fire", 8), ("session_open", 12)),
    "events in another order": seen(("session_open", 11), ("exploit_fire", 7)),
    "a late second event": seen(("exploit_fire", 7), ("session_open", 11), ("exploit_fire", 19)),
    "events of other names": seen(("exploit_fire", 7), ("session_open", 11), ("lunch", 13)),
    "15 s": making(duration_s=15.0),
    "160 of 200 rows": holding(thin(proc=160, qmp=160, guest=160)),
    "a gap of 2 s": making(drop=dict.fromkeys(POLLED, ((5, 6.9),))),
    "a gap of a source at a time": making(drop={"proc": ((3, 4.8),), "qmp": ((9, 10.8),)}),
    "first rows 1.9 s apart": making(drop={"guest": ((0, 1.9),)}),
    "last rows 1.9 s apart": making(drop={"proc": ((18.2, 99),)}),
    "a netflow gap": making(drop={"netflow": ((2, 18),)}),
    "one netflow row": making(drop={"netflow": ((0.1, 99),)}, seed=3),
    "null, absent and odd values": holding(
        set_in_row(FILE["guest"], 7, forks=None, load_1m=REMOVED, page_faults="many", seq=[1])
    ),
    "blank lines": holding(
        lambda m: edit(m, FILE["qmp"], b"\n  \n" + m[FILE["qmp"]] + b"\r\n"),
        lambda m: edit(m, LABELS, m[LABELS].replace(b"\n", b"\n\n")),
    ),
    "rows in another order": holding(
        lambda m: edit_rows(m, FILE["qmp"], lambda r: r[50:100] + r[150:] + r[:50] + r[100:150])
    ),
    "other files": archived(
        *(entry(f"{ID}/{name}", b"\x00\xff") for name in ("network.pcap", "stderr.log", "x" * 200)),
        entry(f"{ID}/network.pcap", b"again"),
    ),
    "another file listed, not there": holding(set_meta(**{"files/stderr.log": {"sha256": "0"}})),
    "a label 1.9 s late": labelled(("clean", 0), ("clean", 21.9)),
    "clocks 1.9 s off": holding(shift_all(1.9, *FILE)),
    "two rows of each polled source outside": holding(
        *(shift(FILE[name], 3600, slice(50, 52)) for name in POLLED)
    ),
    "a guest row years off": holding(set_in_row(FILE["guest"], 7, t_wall_ns=0)),
    "a row before 1970": holding(set_in_row(FILE["guest"], 7, t_wall_ns=-BEYOND_INT64)),
    "2 of 203 rows repeat": holding(*(repeat(name, 2) for name in POLLED)),
    "equal rows at other times": holding(*(set_fields(name, 7) for name in POLLED)),
    "a step back of 0.9 s": holding(step_back("proc", 0.9)),
    "a clock that jumps ahead": holding(shift(FILE["qmp"], 1.2, slice(100, None))),
    "one monotonic instant off": holding(set_in_row(FILE["qmp"], 90, t_mono_ns=-1)),
    "half of the fields in each row": holding(
        *(
            set_fields(name, str, *fields[i::2], rows=slice(i, None, 2))
            for name, fields in FIELD_NAMES.items()
            if len(fields) % 2 == 0
            for i in (0, 1)
        )
    ),
    "a hash in capitals in the index": holding(index={"sha256": sha256(pack(ID, good())).upper()}),
    "hashes in capitals in the meta": holding(
        set_meta(**{f"files/{name}/sha256": sha256(good()[name]).upper() for name in FILE.values()})
    ),
    "the same index row in capitals": lambda store, _: (
        added := store.add(members=good(), index={"sha256": sha256(pack(ID, good())).upper()}),
        store.add_index_row(added.host_id, added.episode_id, added.path.read_bytes()),
    )[0],
    "the same index row twice": lambda store, _: (
        added := store.add(members=good()),
        store.add_index_row(added.host_id, added.episode_id, added.path.read_bytes()),
    )[0],
    "members from ./": packed_as(compress, tar_from_dot),
    "two zstd frames": packed_as(lambda t: compress(t[:999]) + compress(t[999:]), plain_tar),
}


@pytest.mark.parametrize("plant", SOUND.values(), ids=SOUND)
def test_what_is_allowed_is_accepted(
    plant: Plant, store: StoreBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = judge(store, plant(store, monkeypatch))
    assert (record.verdict, record.details) == ("accepted", ())
    assert record.usable


def test_100_rows_are_enough(store: StoreBuilder) -> None:
    few = holding(drop_file(NETFLOW), thin(proc=34, qmp=33, guest=33))
    assert "too_few_rows" not in judge_planted(store, few).reasons


# --- safe reading


def test_reading_keeps_the_files_that_mean_something_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / f"{ID}.tar.zst"
    junk = [entry(f"{ID}/network.pcap", b"pcap"), entry(f"{ID}/done.marker")]
    path.write_bytes(compress(pack_tar([*entries_of(ID, good()), *junk])))
    assert read_members(read_packed(path), ID) == good()
    assert list(tmp_path.rglob("*")) == [path]


def code_of(packed: bytes) -> str | None:
    """What kind of archive error reading ends in, if in one."""
    try:
        read_members(packed, ID)
    except ArchiveError as error:
        return error.code
    return None


def test_no_archive_cut_anywhere_is_read() -> None:
    packed = pack(ID, {name: good()[name] for name in (META, LABELS, EVENTS)})
    read = [n for n in range(1, len(packed) + 1) if code_of(packed[:-n]) != "broken_archive"]
    assert not read, f"accepted with so many bytes missing: {read}"


def test_damaged_headers_are_an_archive_error_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    sound = bytearray(pack_tar(entries_of(ID, {META: b"{}", LABELS: b"", NETFLOW: b"{}\n"})))
    headers = [i for i in range(0, len(sound), 512) if sound[i + 257 : i + 262] == b"ustar"]
    assert len(headers) == 4
    for _ in range(1500):
        tar, at = sound.copy(), int(rng.choice(headers))
        tar[at + rng.integers(512)] = rng.integers(256)
        tar[at + 148 : at + 156] = b" " * 8
        tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])  # a valid checksum
        try:
            members = read_members(compress(bytes(tar)), ID)
        except ArchiveError:
            continue
        assert members.keys() <= {META, LABELS, NETFLOW}


def test_a_bomb_is_stopped_on_its_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds back the decompressor; it is not looked at when all is there."""
    monkeypatch.setattr(episodes.archive, "MAX_UNPACKED_BYTES", 4 * 2**20)
    packed = compress(pack_tar([entry(f"{ID}/network.pcap", bytes(64 * 2**20))]))
    out = 0
    readinto = episodes.archive._CountingReader.readinto

    def counted(reader: Any, buffer: Any) -> int:
        nonlocal out
        out += len(buffer)
        return readinto(reader, buffer)

    monkeypatch.setattr(episodes.archive._CountingReader, "readinto", counted)
    with pytest.raises(ArchiveError, match="unpacked size must be at most"):
        read_members(packed, ID)
    assert out <= 8 * 2**20


# --- verdicts


def test_the_worst_verdict_wins_and_every_reason_is_kept(store: StoreBuilder) -> None:
    members = make_members(
        "lab-a",
        ID,
        duration_s=14.0,
        phases=[("clean", 0), ("armed", 6), ("odd", 3), ("infecting", 8), ("failed", 12)],
        events=[],
        without=("guest", "netflow"),
        drop={"qmp": ((0, 2.5), (4, 9))},
    )
    members[EVENTS] += b"\n"  # another hash
    members = edit_meta(members, {"host_id": "lab-c"}) | {"netflow.jsonl": b""}
    store.add("lab-c", members, episode_id=ID)
    added = store.add("lab-a", lose(FILE["proc"])(members), episode_id=ID, indexed=False)
    record = judge(store, added)
    assert set(record.reasons) == {
        "conflicting_contents",
        "not_in_index",
        "schema",
        "file_hash_mismatch",
        "listed_file_absent",
        "labels_out_of_order",
        "unknown_label",
        "failed_label",
        "infection_without_event",
        "too_few_rows",
        "too_short",
        "source_absent",
        "rows_missing",
        "source_gap",
        "netflow_absent",
    }
    assert record.verdict == "rejected"


@pytest.mark.parametrize(
    ("verdict", "reasons", "changes"),
    [
        ("degraded", "netflow_absent source_absent", [drop_file(NETFLOW), drop_file(FILE["qmp"])]),
        (
            "errored",
            "listed_file_absent netflow_absent source_absent",
            [lose(NETFLOW), empty(FILE["qmp"])],
        ),
        (
            "rejected",
            "listed_file_absent netflow_absent schema",
            [lose(NETFLOW), set_meta(host_id="b")],
        ),
        ("rejected", "netflow_absent schema", [drop_file(NETFLOW), set_meta(host_id="b")]),
    ],
)
def test_the_worst_verdict_wins(
    verdict: str, reasons: str, changes: list[Callable], store: StoreBuilder
) -> None:
    record = judge_planted(store, holding(*changes))
    assert (record.verdict, sorted(record.reasons)) == (verdict, reasons.split())


def test_one_reason_is_kept_for_each_source_it_holds_for(store: StoreBuilder) -> None:
    record = judge_planted(store, making(without=("proc", "guest")))
    assert record.reasons == ("source_absent", "source_absent")
    assert record.details == ("proc: no rows", "guest: no rows")


def test_a_cut_off_archive_has_the_wrong_hash_as_well(store: StoreBuilder) -> None:
    added = store.add(members=good(), index={"size_bytes": 5000})
    added.path.write_bytes(added.path.read_bytes()[:5000])
    assert set(judge(store, added).reasons) == {"tar_hash_mismatch", "broken_archive"}


def test_an_archive_replaced_by_one_of_equal_size_is_rejected_by_its_hash(
    store: StoreBuilder,
) -> None:
    added = store.add(members=good())
    before = list_store(store.root).find(added.episode_id).identity
    added.path.write_bytes(bytes(added.path.stat().st_size))
    assert list_store(store.root).find(added.episode_id).identity == before
    assert "tar_hash_mismatch" in judge(store, added).reasons


def test_a_line_of_labels_may_be_as_long_as_a_line_of_telemetry() -> None:
    longest = b'{"a":"' + b"x" * (MAX_LINE_BYTES - 8) + b'"}'
    for content, taken in ((longest, 1), (longest + b"\n", 1), (longest + b" \n", 0)):
        objects, problems = parse_objects(content)
        assert (len(objects), len(problems)) == (taken, 1 - taken)


def test_an_index_row_with_another_schema_version_is_judged_again_once_corrected(
    store: StoreBuilder,
) -> None:
    added = store.add(members=good(), index={"schema_version": 2})
    wrong = list_store(store.root).find(added.episode_id)
    assert "schema" in judge(store, added).reasons
    index = store.root / "index.jsonl"
    index.write_text(index.read_text().replace('"schema_version":2', '"schema_version":1'))
    corrected = list_store(store.root).find(added.episode_id)
    assert judge(store, added).usable
    assert corrected.identity != wrong.identity
    assert [row[3:] for row in corrected.identity[2]] == [[]]  # as it always was


def test_what_was_found_before_an_exception_is_kept(
    store: StoreBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes.validation, "_check_sources", explode)
    added = store.add(members=set_meta(host_id="lab-c")(good()), episode_id=ID, indexed=False)
    record = judge(store, added)
    assert record.reasons == ("not_in_index", "schema", "unforeseen_error")
    assert record.verdict == "rejected"


def test_the_sweep_goes_on_whatever_one_episode_holds(
    store: StoreBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [store.add(duration_s=DURATION_S).episode_id for _ in range(4)]
    parse_episode = episodes.validation.parse_episode

    def parse(packed: bytes, episode_id: str, fields: Any) -> Any:
        if episode_id == ids[1]:
            explode()
        if episode_id == ids[2]:
            raise ArchiveError("broken_archive", "planted")
        return parse_episode(packed, episode_id, fields)

    monkeypatch.setattr(episodes.validation, "parse_episode", parse)
    swept = [
        validate(stored, ValidationPolicy(), LAYOUT.fields)
        for stored in list_store(store.root).episodes
    ]
    assert [record.verdict for record, _ in swept] == [
        "accepted",
        "errored",
        "rejected",
        "accepted",
    ]
    assert re.fullmatch(EXPLOSION, swept[1][0].details[0])
    assert swept[2][0].details == ("planted",)
    assert [episode is None for _, episode in swept] == [False, True, True, False]
    assert summary_line([record.verdict for record, _ in swept]) == (
        "2 accepted + 0 degraded + 1 rejected + 1 errored = 4"
    )


@pytest.mark.parametrize("times", [1, 3, 99])
@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), PermissionError(13, "x"), MemoryError()]
)
@pytest.mark.parametrize(
    "where", ["episodes.validation.read_packed", "episodes.reading.parse_rows"]
)
def test_what_the_environment_did_is_no_verdict(
    where: str, error: Exception, times: int, store: StoreBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = where.rsplit(".", 1)
    real, left = getattr(sys.modules[module], name), [times]

    def fail(*args: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return real(*args)

    monkeypatch.setattr(where, fail)
    monkeypatch.setattr(episodes.environment, "PAUSES_S", (0, 0, 0))
    added = store.add(members=good())
    if times < 4:
        assert judge(store, added).verdict == "accepted"
    else:
        with pytest.raises(MachineError, match=f"{added.path.name}: .*4 tries"):
            judge(store, added)
        assert left == [95]


def test_an_interrupt_is_not_taken_for_an_episodes_fault(
    store: StoreBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(episodes.reading, "parse_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        judge(store, store.add(members=good()))


def test_summary_line_adds_up() -> None:
    verdicts = ["accepted"] * 3 + ["rejected"] * 2 + ["errored", "degraded"]
    assert summary_line(verdicts) == "3 accepted + 1 degraded + 2 rejected + 1 errored = 7"
    assert summary_line([]) == "0 accepted + 0 degraded + 0 rejected + 0 errored = 0"


# --- the policy: every threshold in one typed place


@pytest.mark.parametrize(
    ("policy", "kwargs", "reason"),
    [
        ({"min_duration_s": 20.1}, {}, "too_short"),
        ({"min_duration_s": 20.0}, {}, None),
        ({"min_duration_s": 14.0}, {"duration_s": 14.0}, None),
        ({"max_duration_s": 19.9}, {}, "schema"),
        ({"max_duration_s": 20.1}, {}, None),
        ({"min_rows": 604}, {"without": ("netflow",)}, "too_few_rows"),
        ({"min_rows": 603}, {"without": ("netflow",)}, None),
        ({"min_row_share": 1.01}, {}, "rows_missing"),
        ({"min_row_share": 0.4}, {"rate_hz": {"guest": 4.0}}, None),
        ({"max_gap_s": 0.099}, {}, "source_gap"),
        ({"max_gap_s": 0.1}, {}, None),
        ({"max_gap_s": 3.0}, {"drop": {"qmp": ((5, 7.9),)}}, None),
        ({"max_source_offset_s": 0.0019}, {}, "source_offset"),
        ({"max_source_offset_s": 0.002}, {}, None),
        ({"max_source_offset_s": 5.0}, {"drop": {"proc": ((0, 2.5),)}}, None),
        ({"max_repeated_share": 0.0}, {}, None),
        ({"max_step_back_s": 0.0}, {}, None),
    ],
)
def test_a_policy_moves_its_threshold(
    policy: dict[str, float], kwargs: dict[str, Any], reason: str | None, store: StoreBuilder
) -> None:
    added = store.add(members=made(**kwargs))
    found = set(judge(store, added, ValidationPolicy(**policy)).reasons) - {"netflow_absent"}
    assert found == ({reason} if reason else set())


@pytest.mark.parametrize("value", [-1, -0.001, float("nan"), "15", None, True])
@pytest.mark.parametrize("name", ValidationPolicy.__slots__)
def test_a_policy_refuses_what_is_no_threshold(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        ValidationPolicy(**{name: value})


def test_the_thresholds_of_the_issue_are_the_defaults() -> None:
    policy = ValidationPolicy()
    assert (policy.min_duration_s, policy.min_rows, policy.min_row_share) == (15, 100, 0.8)
    assert (policy.max_gap_s, policy.max_source_offset_s) == (2, 2)
    with pytest.raises(AttributeError):
        policy.min_rows = 1  # type: ignore[misc]


# --- flags: worth knowing, no reason to degrade


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        (set_meta(), ()),
        (set_meta(code_version__commit="unknown"), ("producer_commit_unknown",)),
        (set_meta(code_version__commit=REMOVED), ("producer_commit_unknown",)),
        (set_meta(code_version__dirty=True), ("producer_dirty",)),
        (set_meta(code_version__dirty=None), ("producer_dirty_unknown",)),
        (set_meta(code_version=REMOVED), ("producer_commit_unknown", "producer_dirty_unknown")),
        (set_meta(**{f"files/{NETFLOW}/rows": 1}), (f"row_count_differs:{NETFLOW}",)),
        (set_meta(**{f"files/{NETFLOW}": REMOVED}), (f"file_not_listed:{NETFLOW}",)),
        (set_in_row(FILE["qmp"], 7, t_wall_ns=0), ("rows_outside:qmp",)),
        (repeat("guest", 1), ("repeated_rows:guest",)),
    ],
)
def test_flags_do_not_degrade(change: Change, flags: tuple[str, ...], store: StoreBuilder) -> None:
    record = judge_members(store, change(good()))
    assert (record.verdict, record.flags) == ("accepted", flags)


def test_made_up_episodes_are_marked(store: StoreBuilder) -> None:
    assert judge_members(store, good()).synthetic is True
    for value in (REMOVED, False, 1, "true"):
        assert judge_members(store, set_meta(synthetic=value)(good())).synthetic is False


# --- the record: one row of the index


def test_a_record_says_what_the_episode_is(store: StoreBuilder) -> None:
    members = made(
        phases=[("clean", 0.0), ("armed", 12.5), ("clean", 17.0)],
        drop={"qmp": ((5, 7),)},
        without=("guest",),
        profile="io-walk",
        sample="io-walk.v2",
    )
    members = set_in_row(FILE["proc"], 7, rss_bytes=None, minor_faults="many")(members)
    added = store.add(members=members)
    record = judge(store, added)
    assert (record.episode_id, record.host_id, record.batch) == (ID, "lab-a", "lab-a.2026-11-02")
    assert (record.sample_name, record.profile, record.tier) == ("io-walk.v2", "io-walk", 3)
    assert record.sample_sha256 == sha256(b"io-walk.v2")
    assert (record.producer_commit, record.producer_dirty) == (COMMIT, False)
    assert record.sha256 == sha256(added.path.read_bytes())
    assert record.size_bytes == added.path.stat().st_size
    assert record.received_at_wall == "2026-11-02T09:00:00.000Z"
    assert (record.started_at_wall_ns, record.duration_s) == (START_NS, 20.0)
    assert {name: record.rows[name] for name in POLLED} == {"proc": 201, "qmp": 181, "guest": 0}
    assert record.rows["netflow"] == len(rows_of(members, NETFLOW)) > 0
    assert record.coverage == {"proc": 1.005, "qmp": 0.905, "guest": 0.0, "netflow": None}
    assert record.largest_gap_s["qmp"] == pytest.approx(2.1)
    assert record.largest_gap_s["guest"] is None
    assert record.unusable_values == {"proc": 2, "qmp": 0, "guest": 0, "netflow": 0}
    assert record.seconds == dict.fromkeys(PHASES, 0.0) | {"clean": 15.5, "armed": 4.5}


def test_the_index_tells_the_commit_where_the_episode_does_not(store: StoreBuilder) -> None:
    members = set_meta(code_version=REMOVED)(good())
    assert judge_members(store, members, index={"code_commit": "abc"}).producer_commit == "abc"


def test_records_are_flat_and_alike_whatever_became_of_the_episode(store: StoreBuilder) -> None:
    sound = judge(store, store.add(members=good()))
    errored = judge_planted(store, row_without_file)
    cut = judge(store, store.add(packed=b"", episode_id=ID))
    rows = [record.as_row() for record in (sound, errored, cut)]
    assert list(rows[0]) == list(rows[1]) == list(rows[2])
    for row in rows:
        for name, value in row.items():
            if name in ("reasons", "details", "flags"):
                assert type(value) is list
                assert all(type(item) is str for item in value)
            else:
                assert isinstance(value, str | int | float | None), name
    assert rows[0]["rows_guest"] == 201
    assert rows[0]["seconds_armed"] == 4.0
    assert rows[0]["coverage_netflow"] is None
    assert rows[1]["rows_guest"] == 0


def test_a_record_can_be_written_whatever_the_episode_says(store: StoreBuilder) -> None:
    half = "\ud800"  # half a character: legal in JSON, in no UTF-8 file
    members = set_meta(
        sample__name=half, sample__profile=half, code_version__commit=half, host_id=half
    )(made(phases=[("clean", 0), (half, 5)]))
    record = judge_members(store, members)
    assert record.verdict == "rejected"
    json.dumps(record.as_row(), ensure_ascii=False).encode()


# --- the store


@pytest.mark.parametrize("name", ["sha256", "received_at_wall"])
@pytest.mark.parametrize("text", ["\ud800", "2026\udfff"])
def test_an_index_row_that_no_table_can_hold_affects_its_episode_only(
    name: str, text: str, store: StoreBuilder
) -> None:
    odd = store.add(members=good(), episode_id=ID, index={name: text})
    sound = store.add(duration_s=DURATION_S)
    listing = list_store(store.root)
    (problem,) = listing.problems
    assert problem.startswith(f"index.jsonl line 1: {name} of episode {ID!r} ")
    problem.encode()
    assert judge(store, odd).reasons == ("not_in_index",)
    assert judge(store, sound).verdict == "accepted"


def test_a_commit_in_the_index_that_no_table_can_hold_is_left_out(store: StoreBuilder) -> None:
    members = set_meta(code_version=REMOVED)(good())
    assert judge_members(store, members, index={"code_commit": "\ud800"}).producer_commit is None


def test_equal_hashes_are_equal_in_any_case(store: StoreBuilder) -> None:
    changes = {"sample.sha256": "AbC", "vm.image_sha256": "DeF"}
    record = judge_members(store, edit_meta(good(), changes))
    assert (record.sample_sha256, record.image_sha256) == ("abc", "def")
    assert judge(store, store.add(duration_s=DURATION_S)).image_sha256 == ""


def test_rows_left_out_are_counted_and_not_used(store: StoreBuilder) -> None:
    members = shift(FILE["qmp"], 3600, slice(50, 52))(repeat("qmp", 2)(good()))
    added = store.add(members=members, episode_id=ID)
    stored = list_store(store.root).find(ID)
    record, episode = validate(stored, ValidationPolicy(), LAYOUT.fields)
    assert episode is not None
    assert (record.rows["qmp"], record.rows_repeated["qmp"]) == (203, 2)
    assert record.rows_outside == {"proc": 0, "qmp": 2, "guest": 0, "netflow": 0}
    assert len(episode.sources["qmp"]) == 199
    assert record.coverage["qmp"] == 199 / 200
    assert judge(store, added) == record


def test_index_and_files_are_reconciled(store: StoreBuilder) -> None:
    both = store.add("lab-b", packed=b"x")
    only_file = store.add("lab-a", packed=b"xyz", indexed=False)
    only_row = store.add("lab-a", packed=b"x")
    only_row.path.unlink()
    listing = list_store(store.root)
    assert [e.episode_id for e in listing.episodes] == [
        only_file.episode_id,
        only_row.episode_id,
        both.episode_id,
    ]
    assert [e.episode_id for e in listing.unindexed] == [only_file.episode_id]
    assert [e.episode_id for e in listing.without_file] == [only_row.episode_id]
    assert [e.size_bytes for e in listing.episodes] == [3, None, 1]
    assert [len(e.index_rows) for e in listing.episodes] == [0, 1, 1]
    assert [e.path for e in listing.episodes] == [only_file.path, only_row.path, both.path]
    assert listing.problems == ()


def test_batches_are_the_days_of_a_host_in_order(store: StoreBuilder) -> None:
    for host, day in (("lab-a-2", 0), ("lab-a", 1), ("lab-a", 0), ("lab-a", 0)):
        store.add(host, packed=b"", start_ns=START_NS + day * DAY_NS)
    batches = list_store(store.root).batches
    assert {key: len(batch) for key, batch in batches.items()} == {
        "lab-a.2026-11-02": 2,
        "lab-a.2026-11-03": 1,
        "lab-a-2.2026-11-02": 1,
    }
    assert list(batches) == sorted(batches)
    for key, batch in batches.items():
        assert [e.episode_id for e in batch] == sorted(e.episode_id for e in batch)
        assert {e.batch for e in batch} == {key}


def test_a_batch_is_the_utc_day_of_the_ulid() -> None:
    midnight_ms = (START_NS // DAY_NS + 1) * 86_400_000
    assert batch_key("h", ulid(midnight_ms - 1, 2**80 - 1)) == "h.2026-11-02"
    assert batch_key("h", ulid(midnight_ms)) == "h.2026-11-03"
    assert batch_key("h", "7" + "Z" * 25) == "h.9999-12-31"
    assert episode_time_ms(ulid(midnight_ms, 5)) == midnight_ms


@pytest.mark.parametrize(
    "text",
    ["", "x", "0" * 25, "0" * 27, "8" + "0" * 25, "0" * 25 + "I", "0" * 25 + "a", "0" * 26 + "\n"],
)
def test_what_is_no_ulid_is_no_episode(text: str) -> None:
    assert not is_episode_id(text)
    with pytest.raises(ValueError, match="ULID"):
        batch_key("lab-a", text)


@pytest.mark.parametrize(
    "name", [f".{ID}.tar.zst", f"{ID}.tar.zst.part", f"{ID}.part", f"{ID}.tar", "notes.txt"]
)
def test_an_unfinished_upload_is_not_there_yet(name: str, store: StoreBuilder) -> None:
    added = store.add(packed=b"x", start_ns=START_NS + DAY_NS)
    (added.path.parent / name).write_bytes(b"half")
    listing = list_store(store.root)
    assert [e.episode_id for e in listing.episodes] == [added.episode_id]
    assert listing.problems == ()


def test_a_file_shorter_than_its_index_row_is_not_there_yet(store: StoreBuilder) -> None:
    added = store.add(members=good())
    whole = added.path.read_bytes()
    identities = []
    for content in (None, b"", whole[:-1], whole):
        added.path.unlink(missing_ok=True)
        if content is not None:
            added.path.write_bytes(content)
        episode = list_store(store.root).find(added.episode_id)
        identities.append(episode.identity)
        assert (episode.size_bytes is None) == (content != whole)
        assert judge(store, added).verdict == ("accepted" if content == whole else "errored")
    assert identities[0] == identities[1] == identities[2] != identities[3]
    added.path.write_bytes(whole[:-1])
    (difference,) = list_store(store.root).differences
    assert difference.endswith(
        f"on disk with {len(whole) - 1:,} of {len(whole):,} bytes: arriving, or cut off"
    )


@pytest.mark.parametrize("line", [b'{"episode_id": "01', b"{", b'{"episode_id": "\xc3'])
def test_an_unfinished_last_line_is_not_there_yet(line: bytes, store: StoreBuilder) -> None:
    added = store.add(packed=b"x")
    store.append_to_index(line)
    listing = list_store(store.root)
    assert [len(e.index_rows) for e in listing.episodes] == [1]
    assert listing.problems == ()
    store.append_to_index(b"\n")
    assert [p.split(":")[0] for p in list_store(store.root).problems] == ["index.jsonl line 2"]
    assert list_store(store.root).find(added.episode_id).index_rows


def test_a_last_line_whole_but_for_its_newline_counts(store: StoreBuilder) -> None:
    store.add(packed=b"x")
    store.index_path.write_bytes(store.index_path.read_bytes().rstrip(b"\n"))
    assert [len(e.index_rows) for e in list_store(store.root).episodes] == [1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"not json", ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
        (b'{"size_bytes": ' + b"9" * 5000 + b"}", ""),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{}", "episode_id is missing"),
    ],
)
def test_a_malformed_index_line_is_reported_and_not_fatal(
    line: bytes, why: str, store: StoreBuilder
) -> None:
    store.add(packed=b"x")
    store.append_to_index(line + b"\n")
    store.add(packed=b"y")
    listing = list_store(store.root)
    assert [len(e.index_rows) for e in listing.episodes] == [1, 1]
    assert len(listing.problems) == 1
    assert listing.problems[0].startswith("index.jsonl line 2: ")
    assert why in listing.problems[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("episode_id", "latest"),
        ("episode_id", "../../x"),
        ("episode_id", REMOVED),
        ("host_id", ""),
        ("host_id", "../lab-a"),
        ("host_id", ".."),
        ("host_id", 7),
        ("sha256", None),
        ("size_bytes", "12"),
        ("size_bytes", True),
        ("size_bytes", 1.0),
        ("received_at_wall", 0),
        ("schema_version", "1"),
    ],
)
def test_an_index_row_is_checked_field_by_field(name: str, value: Any, store: StoreBuilder) -> None:
    store.add(packed=b"x", index={name: value})
    listing = list_store(store.root)
    assert [e.index_rows for e in listing.episodes] == [()]
    assert len(listing.problems) == 1
    assert listing.problems[0].startswith(f"index.jsonl line 1: {name} ")


def test_optional_columns_of_the_index(store: StoreBuilder) -> None:
    store.add(packed=b"x", index={"code_commit": "abc", "backfilled": True, "more": [1]})
    store.add(packed=b"y", index={"code_commit": None, "backfilled": "yes"})
    rows = [row for e in list_store(store.root).episodes for row in e.index_rows]
    assert [(row.code_commit, row.backfilled) for row in rows] == [("abc", True), (None, False)]


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """Within, this process may not read a folder, whoever runs it."""
    user, mode = os.geteuid(), folder.stat().st_mode
    folder.chmod(0o000)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)


@pytest.fixture
def open_store() -> Iterator[StoreBuilder]:
    """A store whose parents everybody may enter, unlike those of ``tmp_path``."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield StoreBuilder(Path(folder, "store"))


def test_a_host_folder_that_cannot_be_read_is_named_and_the_rest_goes_on(
    open_store: StoreBuilder,
) -> None:
    lost = [open_store.add("lab-a", duration_s=DURATION_S) for _ in range(2)]
    kept = open_store.add("lab-b", duration_s=DURATION_S)
    before = list_store(open_store.root)
    with unreadable(lost[0].path.parent):
        for forget in (False, True):  # seen before by this process, and not
            if forget:
                episodes.store._stores.clear()
            listing = list_store(open_store.root)
            assert [e.identity for e in listing.episodes] == [e.identity for e in before.episodes]
            (problem,) = listing.differences
            assert problem.startswith("episodes/lab-a: cannot be read (Permission denied)")
            assert judge(open_store, kept).verdict == "accepted"
            for added in lost:
                with pytest.raises(MachineError, match="Permission denied"):
                    judge(open_store, added)
    assert list_store(open_store.root) == before
    assert [judge(open_store, added).verdict for added in lost] == ["accepted"] * 2


def test_an_episode_that_comes_while_its_folder_cannot_be_read_is_found_later(
    open_store: StoreBuilder,
) -> None:
    first = open_store.add("lab-a", duration_s=DURATION_S)
    assert len(list_store(open_store.root).episodes) == 1
    unindexed = open_store.add("lab-a", duration_s=DURATION_S, indexed=False)
    with unreadable(first.path.parent):
        assert len(list_store(open_store.root).episodes) == 1
    found = list_store(open_store.root)
    assert [e.episode_id for e in found.unindexed] == [unindexed.episode_id]
    assert found.differences == (f"lab-a/{unindexed.episode_id}: on disk, not in the index",)


def test_a_listing_that_failed_half_way_loses_no_change(
    store: StoreBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes.environment, "PAUSES_S", (0,))
    store.add(duration_s=DURATION_S)
    list_store(store.root)
    store.add(duration_s=DURATION_S)
    read = episodes.store._Index.read
    times = [0]

    def stale(index: Any) -> Any:
        times[0] += 1
        if times[0] < 3:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(index)

    monkeypatch.setattr(episodes.store._Index, "read", stale)
    with pytest.raises(MachineError, match="in 2 tries"):
        list_store(store.root)
    assert [e.size_bytes is not None for e in list_store(store.root).episodes] == [True, True]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": "' + b"x" * 10_000_000 + b'"}', "must be at most 65,536 bytes, got 10,000,009"),
        (b"[" * 60_000, "recursion"),
        (b'{"episode_id": "' + b"x" * 300 + b'"}', ""),
        (b'{"size_bytes": ' + b"9" * 5_000 + b"}", "4300 digits"),
    ],
)
def test_an_absurd_line_of_the_index_is_a_problem_and_no_more(
    line: bytes, problem: str, store: StoreBuilder
) -> None:
    for text in (line, line):
        store.append_to_index(text + b"\n")
    store.add(duration_s=DURATION_S)
    listing = list_store(store.root)
    assert len(listing.episodes) == 1
    assert [text[:20] for text in listing.problems] == [f"index.jsonl line {n}: " for n in (1, 2)]
    assert all(problem in text and len(text) <= 500 for text in listing.problems)


def test_a_thousand_malformed_lines_of_the_index_are_counted(store: StoreBuilder) -> None:
    store.append_to_index(b"nonsense\n" * 1000 + b"\n" * 100_000)
    assert list_store(store.root).problems[-1] == "index.jsonl: and 900 more lines"
    store.add(duration_s=DURATION_S)
    assert len(list_store(store.root).episodes) == 1


def test_names_that_fit_nothing_are_problems(store: StoreBuilder) -> None:
    added = store.add(packed=b"x")
    (added.path.parent / "latest.tar.zst").write_bytes(b"")
    (added.path.parent / f"{ID.lower()}.tar.zst").write_bytes(b"")
    (store.root / "episodes" / "lab a").mkdir()
    (store.root / "episodes" / "README").write_bytes(b"")
    listing = list_store(store.root)
    assert [e.episode_id for e in listing.episodes] == [added.episode_id]
    assert listing.problems == (
        "episodes/lab a: name must be a host id; rename the folder",
        f"episodes/lab-a/{ID.lower()}.tar.zst: name must be a ULID",
        "episodes/lab-a/latest.tar.zst: name must be a ULID",
    )


def test_an_id_of_two_hosts_is_known_to_both(store: StoreBuilder) -> None:
    two_hosts(store, pytest.MonkeyPatch())
    listing = list_store(store.root)
    assert [(e.host_id, e.other_hosts) for e in listing.episodes] == [
        ("lab-a", ("lab-b",)),
        ("lab-b", ("lab-a",)),
    ]
    with pytest.raises(StoreError, match="lab-a, lab-b"):
        listing.find(ID)
    verdicts = [validate(e, ValidationPolicy(), LAYOUT.fields)[0] for e in listing.episodes]
    assert [record.reasons for record in verdicts] == [("conflicting_contents",)] * 2


def test_a_host_that_only_the_index_knows_claims_the_id_too(store: StoreBuilder) -> None:
    added = store.add(members=good())
    store.add_index_row("lab-b", ID)
    assert judge(store, added).reasons == ("conflicting_contents",)


def test_either_half_of_a_store_is_enough(tmp_path: Path) -> None:
    files = StoreBuilder(tmp_path / "files")
    files.add(packed=b"x")
    files.index_path.unlink()
    listing = list_store(files.root)
    assert len(listing.unindexed) == 1
    assert listing.problems == ("index.jsonl: missing; every file counts as not indexed",)

    index = StoreBuilder(tmp_path / "index")
    index.add_index_row("lab-a", ID)
    (index.root / "episodes").rmdir()
    assert len(list_store(index.root).without_file) == 1


def test_an_empty_store_is_a_store(store: StoreBuilder) -> None:
    assert list_store(store.root).batches == {}
    with pytest.raises(StoreError, match="no episode"):
        list_store(store.root).find(ID)


def test_a_name_of_the_store_is_a_batch_or_an_episode(store: StoreBuilder) -> None:
    first, second = (store.add("lab-a", duration_s=1).episode_id for _ in range(2))
    listing = list_store(store.root)
    (batch,) = listing.batches
    assert [each.episode_id for each in listing.named(batch)] == [first, second]
    for name in (second, second.lower()):
        assert [each.episode_id for each in listing.named(name)] == [second]
        assert listing.find(name).episode_id == second
    with pytest.raises(StoreError, match=rf"no episode .*did you mean {second}"):
        listing.named(second[:-1] + ("0" if second[-1] != "0" else "1"))
    with pytest.raises(StoreError, match=f"no batch .*did you mean {batch}"):
        listing.named(batch[:-1])
    with pytest.raises(StoreError, match=r"no episode moon in the index or on disk$"):
        listing.named("moon")


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Path.mkdir, "not an episode store"),
        (Path.touch, "not an episode store"),
        (str, "no such folder"),
    ],
)
def test_no_store_is_an_error_that_names_the_path(
    make: Callable[[Path], None], wrong: str, tmp_path: Path
) -> None:
    make(tmp_path / "nothing")
    with pytest.raises(StoreError, match=re.escape(f"{tmp_path / 'nothing'}: {wrong}")):
        list_store(tmp_path / "nothing")


def test_identity_tells_every_change_of_an_episode(store: StoreBuilder) -> None:
    added = store.add(packed=b"x", indexed=False)
    host, episode_id = added.host_id, added.episode_id

    def identity() -> str:
        episodes_ = list_store(store.root).batches["lab-a.2026-11-02"]
        return json.dumps([stored.identity for stored in episodes_])

    known = [identity()]
    for change in (
        lambda: store.add_index_row(host, episode_id, b"x"),
        lambda: store.add_index_row(host, episode_id, b"y"),
        lambda: added.path.write_bytes(b"longer"),
        lambda: added.path.unlink(),
        lambda: store.add_index_row("lab-b", episode_id, b"y"),
    ):
        change()
        known.append(identity())
        assert identity() == known[-1]
    assert len(set(known)) == 6


def test_the_store_is_never_written(store: StoreBuilder) -> None:
    store.add(members=drop_file(LABELS)(good()))
    store.add(duration_s=DURATION_S, indexed=False)
    store.add(packed=b"garbage")
    store.add(packed=b"").path.unlink()
    store.append_to_index(b"unfinished")

    def snapshot() -> list[tuple[Any, ...]]:
        found = []
        for folder, folders, files in os.walk(store.root):
            for name in (".", *folders, *files):
                path = Path(folder, name)
                stat = path.lstat()
                content = path.read_bytes() if name in files else b""
                found.append((path, stat.st_mode, stat.st_mtime_ns, stat.st_ino, content))
        return sorted(found)

    before = snapshot()
    for stored in list_store(store.root).episodes:
        validate(stored, ValidationPolicy(), LAYOUT.fields)
    assert snapshot() == before


@settings(deadline=None)  # the first call may compile
@given(
    st.lists(st.sampled_from([b"{}", b" ", b"\t", b"\r", b"\v", b"\f", b"\n", b"x"]), max_size=12)
)
def test_rows_are_the_lines_that_are_not_blank(parts: list[bytes]) -> None:
    content = b"".join(parts)
    counted = parse_rows(content, (), "guest").n_lines
    assert counted == sum(1 for line in content.split(b"\n") if line.strip())
