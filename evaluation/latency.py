"""How long a model takes for one window, as on a device that scores each window as it ends.

From the window's inputs to its probabilities: neither reading rows nor making inputs is part of it.
A time is never the same twice, so nothing that is hashed may hold it.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.documents import Latency

CALLS = 200  # timed
WARM_UP = 20  # before them, not timed


def measure(predict: Callable[[NDArray[np.float32]], object], X: NDArray[np.float32]) -> Latency:
    """Median and 99th percentile of single-window calls; the windows are taken in turn.

    Args:
        predict: is to use one thread.
        X: at least one window.
    """
    turns = itertools.cycle(X[i : i + 1] for i in range(len(X)))
    for window in itertools.islice(turns, WARM_UP):
        predict(window)
    taken_ns = []
    for window in itertools.islice(turns, CALLS):
        began = time.perf_counter_ns()
        predict(window)
        taken_ns.append(time.perf_counter_ns() - began)
    median, p99 = np.percentile(taken_ns, [50, 99]) / 1e6
    return Latency(
        processor=processor(),
        windows=CALLS,
        median_ms=round(float(median), 4),
        p99_ms=round(float(p99), 4),
    )


def processor() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"
