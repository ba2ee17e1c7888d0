"""Telemetry files as (source, lines) in order of time."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping

from episodes.format import NS_PER_S, SOURCES
from live.stream import LEAP_S

CHUNK_NS = 500_000_000  # lines of one source that are this close may come together
_LEAP_NS = LEAP_S * NS_PER_S  # between two lines; of a longer one, the next line has to agree
_TIME = re.compile(rb'"t_wall_ns"\s*:\s*(-?\d{1,19})')


def line_time(line: bytes, before: int) -> int:
    """Unix ns that a line states; that of the line before it if it states none."""
    found = _TIME.search(line)
    return int(found[1]) if found else before


def timed_lines(lines: Iterable[bytes], source: str) -> Iterator[tuple[int, str, bytes]]:
    """Lines of one source with times that keep the file's order and ignore a single wrong one."""
    latest = before = 0
    for line in lines:
        t = line_time(line, before)
        near = abs(t - before) < _LEAP_NS
        before = t
        if near or not latest:
            latest = t if abs(t - latest) > _LEAP_NS else max(latest, t)
        yield latest, source, line


def timeline(
    members: Mapping[str, bytes], sources: Iterable[str]
) -> Iterator[tuple[int, str, bytes]]:
    """(Unix ns, source, lines) of an episode's files, lines of one source together if close.

    Args:
        members: content by file name.
        sources: names of the sources that are wanted.
    """
    streams = [
        timed_lines(members.get(SOURCES[name].file, b"").split(b"\n"), name) for name in sources
    ]
    merged = heapq.merge(*streams, key=lambda row: row[0])
    return group_rows(row for row in merged if row[2])


def group_rows(rows: Iterable[tuple[int, str, bytes]]) -> Iterator[tuple[int, str, bytes]]:
    """(Unix ns, source, line) in order; lines of one source in sequence are one if close."""
    lines: list[bytes] = []
    since, current = 0, ""
    for t, source, line in rows:
        if lines and (source != current or t - since > CHUNK_NS):
            yield since, current, b"\n".join(lines)
            lines = []
        if not lines:
            since, current = t, source
        lines.append(line)
    if lines:
        yield since, current, b"\n".join(lines)
