"""What the environment does, which says nothing about an episode: no verdict may come of it.

A network store hiccups, a disk is full, too many files are open, there is no memory. The work is
tried again, and then it fails as a whole, so that a later run does it.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from config.errors import PhasewatchError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

Result = TypeVar("Result")

PAUSES_S = (0.1, 0.4, 1.5)
"""How long to wait before each further try."""


_CLOCK_TICK_NS = 2_000_000_000  # of the coarsest file systems


def settled(state: os.stat_result) -> bool:
    """Whether the times of a file or folder tell one state from the next.

    A change within the same tick of the file system's clock leaves the same times behind.
    """
    return settled_since(max(state.st_mtime_ns, state.st_ctime_ns))


def settled_since(changed_ns: int) -> bool:
    """``settled``, for the latest of many times."""
    return time.time_ns() - changed_ns > _CLOCK_TICK_NS


@contextmanager
def collector_paused() -> Iterator[None]:
    """Within, Python does not look for cycles of garbage.

    For work that makes many objects, keeps them and ties none in a cycle: the collector would look
    through all of them again and again, for half of the time that the work takes.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class MachineError(PhasewatchError):
    """Work failed for a reason outside its input; the message says on what, why and what to do."""


def retry(work: Callable[[], Result], what: object) -> Result:
    """The result of ``work``, tried again while the environment makes it fail.

    Args:
        what: what is worked on, for the message.

    Raises:
        MachineError: the last try failed as well.
    """
    for pause in PAUSES_S:
        try:
            return work()
        except (OSError, MemoryError):
            time.sleep(pause)
    try:
        return work()
    except (OSError, MemoryError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise unreadable_error(what, f"{why}, in {len(PAUSES_S) + 1} tries") from error


def unreadable_error(what: object, why: str) -> MachineError:
    """The error that says that something could not be read."""
    return MachineError(
        f"{what}: {why}. This is not a fault of the episode, so nothing was decided or "
        "written; fix the cause and run the command again"
    )
