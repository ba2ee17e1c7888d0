"""Work in a process of its own, with limits: what takes the process down takes the try down."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.table import Outcome

BASELINE_BYTES = 180_000_000
"""What ``phasewatch validate`` holds before it opens an archive; here other things are loaded."""


@dataclass(frozen=True)
class Limits:
    """What a piece of work may take."""

    cpu_s: float
    wall_s: float
    most_bytes: int  # of resident memory, with ``BASELINE_BYTES``


@dataclass(frozen=True)
class Ended:
    """What became of the work: its result, or what is wrong."""

    result: Any = None
    bad: Outcome | None = None


def apart(work: Callable[[], Any], limits: Limits) -> Ended:
    """Do ``work`` in a fork of this process; its result must be picklable."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "wb") as answer:
            answer.write(pickle.dumps(_measured(work)))
        os._exit(0)
    os.close(writing)
    content, until = b"", time.monotonic() + limits.wall_s
    with os.fdopen(reading, "rb", buffering=0) as answer:
        while (left := until - time.monotonic()) > 0:
            if select.select([answer], [], [], left)[0]:
                chunk = answer.read(2**16)
                if not chunk:
                    break
                content += chunk
        else:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if left <= 0:
        return Ended(bad=Outcome("hang", f"over {limits.wall_s:g} s"))
    if os.WIFSIGNALED(status) or not content:
        return Ended(bad=Outcome("traceback", f"signal {os.WTERMSIG(status)}"))
    result, failure, cpu_s, grown = pickle.loads(content)  # noqa: S301  written above
    if failure:
        return Ended(bad=Outcome("traceback", failure))
    if cpu_s > limits.cpu_s:
        return Ended(bad=Outcome("hang", f"{cpu_s:.1f} s of processor time"))
    if BASELINE_BYTES + grown > limits.most_bytes:
        return Ended(bad=Outcome("wrong", f"{grown / 1e6:.0f} MB of memory more than before"))
    return Ended(result)


def _measured(work: Callable[[], Any]) -> tuple[Any, str, float, int]:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
    before = _resident("VmRSS")
    result, failure = None, ""
    try:
        result = work()
    except Exception:
        failure = traceback.format_exc()[-1500:]
    used = resource.getrusage(resource.RUSAGE_SELF)
    return result, failure, used.ru_utime + used.ru_stime, _resident("VmHWM") - before


def _resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(which)).split()[1])
