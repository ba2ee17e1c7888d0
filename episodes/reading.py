"""One episode in memory: its meta, labels, events, benign jobs and telemetry columns.

Rows that cannot be right are left out, by the rules of ``trust``. No verdict is given; problems are
kept as text for ``validation``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from episodes.archive import read_members, read_packed
from episodes.environment import collector_paused
from episodes.format import (
    EVENTS_FILE,
    JOB_EVENTS,
    LABELS_FILE,
    MAX_NAME,
    META_FILE,
    SOURCES,
    is_text,
)
from episodes.jsonl import (
    NO_WALL_TIME,
    FieldPath,
    Rows,
    and_more,
    is_int64,
    parse_objects,
    parse_rows,
)
from episodes.trust import Bounds, Usage, episode_bounds, usable_rows

MAX_META_BYTES = 256 * 2**10
_MAX_PROBLEMS = 20  # of a file that are described; all are counted


@dataclass(frozen=True)
class Moments:
    """Labels or events with their times, in file order."""

    t_wall_ns: NDArray[np.int64]  # (n,)
    names: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run of a benign job, in Unix ns."""

    name: str
    start_ns: int | None  # None: its start was not recorded
    end_ns: int | None  # None: its end was not recorded


@dataclass(frozen=True)
class Episode:
    """An episode's content. A missing file reads as empty; ``members`` has the files present."""

    episode_id: str
    members: Mapping[str, bytes]
    meta: dict[str, Any]
    meta_problem: str | None
    labels: Moments
    events: Moments
    jobs: tuple[Job, ...]
    bounds: Bounds | None  # None: ``meta`` states none
    sources: Mapping[str, Rows]  # the rows that count; none of a source that counts as absent
    usage: Mapping[str, Usage]  # by source: what became of all of its rows


def read_episode(path: Path, episode_id: str, fields: Mapping[str, Sequence[FieldPath]]) -> Episode:
    """Read and parse one archive.

    Raises:
        OSError, ArchiveError: see ``episodes.archive``.
    """
    return parse_episode(read_packed(path), episode_id, fields)


def parse_episode(
    packed: bytes, episode_id: str, fields: Mapping[str, Sequence[FieldPath]]
) -> Episode:
    """Parse one archive held in memory.

    Raises:
        ArchiveError: see ``episodes.archive.read_members``.
    """
    return parse_members(episode_id, read_members(packed, episode_id), fields)


def parse_members(
    episode_id: str, members: Mapping[str, bytes], fields: Mapping[str, Sequence[FieldPath]]
) -> Episode:
    """Parse the files of one episode."""
    with collector_paused():  # a line may hold thousands of lists, and none stays
        rows = {
            name: parse_rows(members.get(source.file, b""), fields.get(name, ()), source.tag)
            for name, source in SOURCES.items()
        }
        return assemble(episode_id, members, rows)


def assemble(episode_id: str, members: Mapping[str, bytes], sources: Mapping[str, Rows]) -> Episode:
    """An episode from its files and the rows of its telemetry.

    Args:
        members: meta, labels and events are parsed here, telemetry is not.
        sources: all well-formed rows of each source; those that do not count are left out here.
    """
    meta, meta_problem = _parse_meta(members.get(META_FILE))
    bounds = episode_bounds(meta)
    read = {name: usable_rows(rows, bounds) for name, rows in sources.items()}
    events = members.get(EVENTS_FILE, b"")
    return Episode(
        episode_id=episode_id,
        members=members,
        meta=meta,
        meta_problem=meta_problem,
        labels=_parse_moments(members.get(LABELS_FILE, b""), "phase"),
        events=_parse_moments(events, "event"),
        jobs=_parse_jobs(events),
        bounds=bounds,
        sources={name: rows for name, (rows, _) in read.items()},
        usage={name: usage for name, (_, usage) in read.items()},
    )


def _parse_meta(content: bytes | None) -> tuple[dict[str, Any], str | None]:
    if content is None:
        return {}, "missing"
    if len(content) > MAX_META_BYTES:
        return {}, f"must be at most {MAX_META_BYTES:,} bytes, got {len(content):,}"
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    if not isinstance(meta, dict):
        return {}, f"must be a JSON object, got {type(meta).__name__}"
    return meta, None


def _parse_moments(content: bytes, key: str) -> Moments:
    rows, problems = parse_objects(content)
    times: list[int] = []
    names: list[str] = []
    for number, row in rows:
        if not is_int64(row.get("t_wall_ns")):
            problems.append(f"line {number}: {NO_WALL_TIME}")
        elif not isinstance(row.get(key), str):
            problems.append(f"line {number}: {key} is missing or not a string")
        elif len(row[key]) > MAX_NAME:
            problems.append(f"line {number}: {key} must be at most {MAX_NAME} characters")
        else:
            times.append(row["t_wall_ns"])
            names.append(row[key])
    described = [*problems[:_MAX_PROBLEMS], *and_more(len(problems) - _MAX_PROBLEMS)]
    return Moments(np.array(times, dtype=np.int64), tuple(names), tuple(described))


def _parse_jobs(content: bytes) -> tuple[Job, ...]:
    """The benign jobs of the events, malformed ones left out.

    An end belongs to the earliest start of that job before it that has no end yet.
    """
    marks = [
        (row["t_wall_ns"], row["job"], JOB_EVENTS[row["event"]])
        for _, row in parse_objects(content)[0]
        if is_int64(row.get("t_wall_ns"))
        and is_text(row.get("event"))
        and row["event"] in JOB_EVENTS
        and is_text(row.get("job"))
        and 0 < len(row["job"]) <= MAX_NAME
    ]
    jobs: list[Job] = []
    running: dict[str, list[int]] = defaultdict(list)
    for t_wall_ns, name, starts in sorted(marks, key=lambda mark: mark[0]):
        if starts:
            running[name].append(t_wall_ns)
        else:
            jobs.append(Job(name, running[name].pop(0) if running[name] else None, t_wall_ns))
    jobs += [Job(name, start, None) for name, starts in running.items() for start in starts]
    return tuple(jobs)
