"""Where rows come from, beside this machine: a folder that grows, a pipe, a recording."""

from __future__ import annotations

import json
import os
import select
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path
from typing import Protocol

from episodes.format import LABELS_FILE, SOURCES
from episodes.jsonl import is_int64, parse_objects
from features.registry import CHANNELS
from live.stream import line_digest
from live.timeline import group_rows, line_time, timed_lines, timeline

MAX_LINE = 65_536
"""Bytes of a line; a longer one is dropped and counted."""
_READ = 1 << 20  # bytes read at a time
_POLL_S = 0.1
_WAIT_S = 1.0  # at most, so that a slow replay can be stopped
DEPLOYABLE = tuple(name for name, source in SOURCES.items() if source.deployable)
_TAGS = {SOURCES[name].tag: name for name in DEPLOYABLE}
ALL_CHANNELS = frozenset(channel.name for channel in CHANNELS if channel.deployable)


class RowSource(Protocol):
    """Rows of one machine as they become known."""

    @property
    def channels(self) -> frozenset[str]:
        """Names of the channels that it can give."""

    @property
    def lost(self) -> Mapping[str, int]:
        """What did not become rows, counted by why: lines of over ``MAX_LINE`` are malformed."""

    def read(self) -> list[tuple[str, bytes]] | None:
        """(source, lines) that came, in order; empty after a while without; None: no more."""

    def close(self) -> None: ...


class _Lines:
    """Cuts what arrives into lines, in bounded memory."""

    def __init__(self) -> None:
        self._rest = b""
        self._too_long = False
        self.dropped = 0

    def take(self, content: bytes) -> list[bytes]:
        """The lines that are complete now."""
        *lines, self._rest = (self._rest + content).split(b"\n")
        if self._too_long and lines:  # the end of a line whose begin was dropped
            lines, self._too_long = lines[1:], False
        if len(self._rest) > MAX_LINE:
            self.dropped += not self._too_long
            self._rest, self._too_long = b"", True
        kept = [line for line in lines if len(line) <= MAX_LINE]
        self.dropped += len(lines) - len(kept)
        return [line for line in kept if line.strip()]


class StdinSource:
    """JSON lines on standard input; each says its source."""

    channels = ALL_CHANNELS

    def __init__(self, handle: int = 0):
        self._handle = handle
        self._lines = _Lines()
        self.left_out = 0  # lines that are no rows of a source that a device reads

    @property
    def lost(self) -> Mapping[str, int]:
        return {"malformed": self._lines.dropped}

    def read(self) -> list[tuple[str, bytes]] | None:
        ready, _, _ = select.select([self._handle], [], [], 1.0)
        if not ready:
            return []
        content = os.read(self._handle, _READ)
        lines = self._lines.take(content or b"\n")  # the last line may lack its newline
        if not content and not lines:
            return None
        known = list(_known(lines))
        self.left_out += len(lines) - len(known)
        return [(source, rows) for _, source, rows in group_rows(known)]

    def close(self) -> None:
        """Standard input stays open."""


def _known(lines: list[bytes]) -> Iterator[tuple[int, str, bytes]]:
    """Lines with their time and the source that each states; those of others are left out."""
    t = 0
    for line in lines:
        try:
            source = _TAGS.get(json.loads(line).get("source"))
        except (ValueError, AttributeError, TypeError, RecursionError):
            continue
        if source:
            t = line_time(line, t)
            yield t, source, line


class FolderSource:
    """An episode's folder while it is written; its files may come later, or begin anew."""

    channels = ALL_CHANNELS

    def __init__(self, folder: Path):
        self._folder = folder
        self._tails = {name: _Tail(folder / SOURCES[name].file, name) for name in DEPLOYABLE}

    @property
    def lost(self) -> Mapping[str, int]:
        return {"malformed": sum(tail.too_long for tail in self._tails.values())}

    def go_on_after(self, last_lines: Mapping[str, bytes]) -> None:
        """Begin after the line with this digest, of each source; at the start if no line has it."""
        for name, digest in last_lines.items():
            if name in self._tails:
                self._tails[name].go_on_after(digest)

    def origin_ns(self) -> int | None:
        """Time of the earliest label, at which the windows of the episode begin."""
        try:
            content = (self._folder / LABELS_FILE).read_bytes()
        except OSError:
            return None
        return first_label(content)

    def read(self) -> list[tuple[str, bytes]] | None:
        tails = self._tails.values()
        for tail in tails:
            tail.fill()
        # rows later than what is read of a file that has more would overtake it
        until = min((tail.until for tail in tails if tail.has_more), default=None)
        rows = merge(*(tail.rows(until) for tail in tails), key=lambda row: row[0])
        found = [(source, lines) for _, source, lines in group_rows(rows)]
        if not found:
            time.sleep(_POLL_S)
        return found

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()


class _Tail:
    """One file that grows."""

    def __init__(self, path: Path, source: str):
        self._path, self._source = path, source
        self._handle: int | None = None
        self._at = 0
        self._lines = _Lines()
        self._waiting: list[tuple[int, str, bytes]] = []
        self.has_more = False

    @property
    def too_long(self) -> int:
        return self._lines.dropped

    @property
    def until(self) -> int:
        """Time of the last row that was read."""
        return self._waiting[-1][0] if self._waiting else 0

    def go_on_after(self, last: bytes) -> None:
        """See ``FolderSource``."""
        at = 0
        try:
            if not self._path.is_file():
                return
            with self._path.open("rb") as file:
                while line := file.readline(MAX_LINE + 1):
                    at += len(line)
                    if line_digest(line.removesuffix(b"\n")) == last:
                        self._at = at
                        return
        except OSError:
            return

    def fill(self) -> None:
        """Read on, if what was read is used up."""
        if self._waiting:
            return
        self.has_more = False
        if self._handle is None and not self._open():
            return
        assert self._handle is not None
        ended = self._ended()  # asked first: what was written before is read below
        try:
            content = os.pread(self._handle, _READ, self._at)
        except OSError:
            content = b""
        self._at += len(content)
        self.has_more = len(content) == _READ
        if ended and not content:
            content = b"\n"  # the last line may lack its newline
            self.close()
        self._waiting = list(timed_lines(self._lines.take(content), self._source))

    def _open(self) -> bool:
        """Whether there is a file; anything else at its place is none."""
        try:
            self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        if not stat.S_ISREG(os.fstat(self._handle).st_mode):
            self.close()
        return self._handle is not None

    def _ended(self) -> bool:
        """Whether another file is in its place, or none, or it was cut."""
        assert self._handle is not None
        try:
            now, held = self._path.stat(), os.fstat(self._handle)
        except OSError:
            return True
        return not os.path.samestat(now, held) or held.st_size < self._at

    def rows(self, until: int | None) -> list[tuple[int, str, bytes]]:
        """Take the rows up to a time; None: all."""
        n = len(self._waiting)
        if until is not None:
            n = sum(1 for t, _, _ in self._waiting if t <= until)
        taken, self._waiting = self._waiting[:n], self._waiting[n:]
        return taken

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle, self._at = None, 0


@dataclass
class ReplaySource:
    """A recorded episode, at the speed that it was recorded times ``speed``.

    Args:
        members: content of its files, by name.
        speed: 0: as fast as possible.
    """

    members: Mapping[str, bytes]
    speed: float = 1.0
    channels: frozenset[str] = ALL_CHANNELS
    lost: Mapping[str, int] = field(default_factory=dict)  # long lines are malformed, as in batch

    def __post_init__(self) -> None:
        self._rows = timeline(self.members, DEPLOYABLE)
        self._next = next(self._rows, None)
        self._began = time.monotonic()
        self._first_ns = self._next[0] if self._next else 0

    def origin_ns(self) -> int | None:
        return first_label(self.members.get(LABELS_FILE, b""))

    def read(self) -> list[tuple[str, bytes]] | None:
        if self._next is None:
            return None
        t, source, lines = self._next
        if self.speed > 0:
            due = self._began + (t - self._first_ns) / 1e9 / self.speed
            wait_s = max(0.0, due - time.monotonic())
            time.sleep(min(wait_s, _WAIT_S))
            if wait_s > _WAIT_S:
                return []
        self._next = next(self._rows, None)
        return [(source, lines)]

    def close(self) -> None:
        """Nothing is held."""


def first_label(content: bytes) -> int | None:
    """Unix ns of the earliest label in ``labels.jsonl``; None: it has none."""
    rows = [row for _, row in parse_objects(content)[0]]
    times = [row["t_wall_ns"] for row in rows if is_int64(row.get("t_wall_ns"))]
    return min(times, default=None)
