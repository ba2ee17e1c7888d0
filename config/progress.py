"""Progress of a task: what, how many of how many, how fast, how long it will still take.

Where lines are shown, and how seldom, is for the program that runs the task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
EVERY_S = 2.0


class Say(Protocol):
    """Takes a line of a task; ``last``: it is the task's last."""

    def __call__(self, line: str, *, last: bool) -> None: ...


class Meter:
    """Counts what a task has done: a line at once, then at most one every so many seconds, and
    the last. It is what every ``progress(done, total, text)`` of the code may be given.

    Args:
        what: names the task.
        say: takes each line.
    """

    def __init__(
        self,
        what: str,
        say: Say,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.what, self.every_s = what, every_s
        self._say, self._clock = say, clock
        self._began = clock()
        self._said: float | None = None

    def __call__(self, done: int, total: int, text: str = "") -> None:
        now, last = self._clock(), done >= total
        if not last and self._said is not None and now - self._said < self.every_s:
            return
        self._said = now
        parts = [f"{self.what}: {done:,} of {total:,}", *self._speed(done, total, now), text]
        self._say(", ".join(filter(None, parts)), last=last)

    def _speed(self, done: int, total: int, now: float) -> Iterator[str]:
        """The rate so far, and the time left at that rate; nothing before it can be known."""
        passed = now - self._began
        if done <= 0 or passed <= 0:
            return
        yield rate(done / passed)
        if done < total:
            yield f"{duration(passed / done * (total - done))} left"


def counted(items: Sequence[Item], meter: Meter) -> Iterator[Item]:
    """The items, each counted once what is done with it is done."""
    for done, item in enumerate(items):
        meter(done, len(items))
        yield item
    meter(len(items), len(items))


def rate(per_s: float) -> str:
    """``12/s``, ``3.5/min``, ``2/h``: in the smallest unit that gives at least one."""
    for unit, factor in (("s", 1), ("min", 60)):
        if per_s * factor >= 1:
            return f"{per_s * factor:,.3g}/{unit}" if per_s < 1000 else f"{per_s:,.0f}/{unit}"
    return f"{per_s * 3600:,.2g}/h"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60:02} min"
