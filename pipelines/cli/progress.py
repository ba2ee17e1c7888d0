"""Where progress goes: one line that is rewritten on a terminal, a line now and then in a file."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from config.progress import Meter, counted, duration

_CLEAR = "\r\x1b[K"
LINE_EVERY_S = 30.0
"""A file gets progress at most so often, and after so long without a line it is told again."""


_rewritten: list[ProgressHandler] = []
"""The handler whose line on the terminal is not ended; others clear it before they write."""


def clear_line() -> None:
    """Clear the line that is rewritten, so that what is written next does not follow on it."""
    while _rewritten:
        _rewritten.pop().clear()


class ProgressHandler(logging.Handler):
    """Shows records on a stream.

    A record with ``progress`` is about a task under way; one with ``last`` ends it. On a terminal
    such records share one line, which is rewritten. Elsewhere the first is shown, then at most one
    every ``LINE_EVERY_S``, and the last of a task that a line was shown of. Of equal warnings one
    is shown, and everything else always.
    """

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        only_if_long: bool = False,
    ):
        """``only_if_long``: a file gets the first line after ``LINE_EVERY_S``."""
        super().__init__()
        self.stream = stream
        self._clock = clock
        self._rewrites = stream.isatty()
        self._warned = set[str]()
        self._open = False  # a line on the terminal is to be rewritten
        self._task: str | None = None  # what the last progress said, unless it was the last
        self._task_at = 0.0
        self._shown_of: str | None = None  # the task that a line was shown of
        self._shown_at = clock() if only_if_long else clock() - LINE_EVERY_S
        self._any_at = clock()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if not getattr(record, "progress", False):
                if record.levelno >= logging.WARNING:
                    if line in self._warned:
                        return
                    self._warned.add(line)
                if self._task is not None and _task_of(line) == _task_of(self._task):
                    self._task = None  # its outcome: it may have ended before all was done
                self._write(line)
                return
            last, now = getattr(record, "last", False), self._clock()
            self._task, self._task_at = (None if last else line), now
            if self._rewrites:
                self._write(line, stays=last)
                return
            task = _task_of(line)
            if now - self._shown_at >= LINE_EVERY_S or (last and task == self._shown_of):
                self._shown_of, self._shown_at = (None if last else task), now
                self._write(line)
        except Exception:
            self.handleError(record)

    def beat(self) -> None:
        """Say again what is under way, if nothing was said for long."""
        assert self.lock is not None
        with self.lock:
            now = self._clock()
            if self._task is None or now - self._any_at < LINE_EVERY_S:
                return
            self._shown_at = now
            self._shown_of = _task_of(self._task)
            passed = now - self._task_at
            since = f"; for {duration(passed)} now" if passed >= LINE_EVERY_S / 3 else ""
            self._write(f"{self._task}{since}", stays=not self._rewrites)

    def clear(self) -> None:
        """Clear the line that is to be rewritten."""
        if self._open:
            self.stream.write(_CLEAR)
            self.stream.flush()
            self._open = False

    def _write(self, line: str, *, stays: bool = True) -> None:
        self._any_at = self._clock()
        before = _CLEAR if self._open else ""
        if self._rewrites and not stays:
            line = line[: shutil.get_terminal_size().columns - 1]  # a wrapped one stays
        self.stream.write(f"{before}{line}" + ("\n" if stays else ""))
        self.stream.flush()
        self._open = not stays
        _rewritten[:] = [self] if self._open else []


def _task_of(line: str) -> str:
    return line.partition(":")[0]


def log_to_stderr() -> None:
    """Progress and warnings on stderr: rewritten on a terminal, sparse in a file."""
    handler = ProgressHandler(sys.stderr)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("phasewatch").setLevel(logging.INFO)
    if handler in logging.getLogger().handlers:  # not where logging was set up before
        threading.Thread(target=_beat, args=(handler,), daemon=True).start()


def _beat(handler: ProgressHandler) -> None:
    while True:
        time.sleep(1)
        handler.beat()


def track(items: Sequence[Any], what: str) -> Iterator[Any]:
    """The items, counted on stderr; in a file nothing is said of what does not take long."""
    handler = ProgressHandler(sys.stderr, only_if_long=True)

    def say(line: str, *, last: bool) -> None:
        handler.handle(
            logging.makeLogRecord({"msg": line, "progress": True, "last": last, "levelno": 20})
        )

    every_s = 0.2 if handler.stream.isatty() else LINE_EVERY_S
    yield from counted(items, Meter(what, say, every_s))
