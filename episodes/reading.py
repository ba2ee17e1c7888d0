"""One episode in memory: its meta, labels, events and telemetry columns, as shipped.

Reading repairs nothing and judges nothing; problems are kept as text for ``validation``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from episodes.archive import read_members, read_packed
from episodes.format import EVENTS_FILE, LABELS_FILE, META_FILE, SOURCES
from episodes.jsonl import NO_WALL_TIME, FieldPath, Rows, is_int64, parse_objects, parse_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Labels or events with their times, in file order."""

    t_wall_ns: NDArray[np.int64]  # (n,)
    names: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Episode:
    """An episode's content. A missing file reads as empty; ``members`` has the files present."""

    episode_id: str
    members: Mapping[str, bytes]
    meta: dict[str, Any]
    meta_problem: str | None
    labels: Moments
    events: Moments
    sources: Mapping[str, Rows]


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
    members = read_members(packed, episode_id)
    meta, meta_problem = _parse_meta(members.get(META_FILE))
    return Episode(
        episode_id=episode_id,
        members=members,
        meta=meta,
        meta_problem=meta_problem,
        labels=_parse_moments(members.get(LABELS_FILE, b""), "phase"),
        events=_parse_moments(members.get(EVENTS_FILE, b""), "event"),
        sources={
            name: parse_rows(members.get(source.file, b""), fields.get(name, ()), source.tag)
            for name, source in SOURCES.items()
        },
    )


def _parse_meta(content: bytes | None) -> tuple[dict[str, Any], str | None]:
    if content is None:
        return {}, "missing"
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
        else:
            times.append(row["t_wall_ns"])
            names.append(row[key])
    return Moments(np.array(times, dtype=np.int64), tuple(names), tuple(problems))
