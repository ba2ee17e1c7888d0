"""Worker processes: how many fit on this machine, and trainings made ahead in them.

A net this small gains nothing from a second thread, so a second core is used by a second process.
What a process trains does not depend on the others: results are those of one at a time.
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from episodes.environment import MachineError
from models.registry import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stages.checkpoints import FittedModel
    from stages.project import Project
    from stages.workspace import Workspace

log = logging.getLogger("phasewatch")
_NVIDIA = Path("/proc/driver/nvidia")  # asked instead of torch, which takes seconds to load
KILLED = "a worker process was killed, perhaps because memory ran out"
_LOOKED_AT_S = 1.0
_PIPE_BYTES = 2**20  # what Linux lets any user have
_ahead: ContextVar[TrainingAhead | None] = ContextVar("ahead", default=None)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def trainings_at_a_time(workspace: Workspace) -> int:
    """As many as there are cores for the threads of a net; one on a GPU."""
    if workspace.device == "cuda" or (workspace.device == "auto" and _NVIDIA.exists()):
        return 1
    configs = [workspace.model_config_of(v) for v in VARIANTS if "torch" in v.spec.libraries]
    return max(1, cores() // max((config.n_threads for config in configs), default=1))


@contextmanager
def worker_processes(count: int, prepare: Callable[..., None], *given: Any) -> Iterator[Any]:
    """A pool of fresh processes, which a fork of this one would not be: Polars and OpenMP hang.

    Args:
        prepare: called with ``given`` in each process, once.

    Raises:
        MachineError: one of them was killed.
    """
    pool = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(max(1, cores() // count), prepare, given),
    )
    _widen(pool)
    ended = threading.Event()
    threading.Thread(target=_end_if_one_is_killed, args=(pool, ended), daemon=True).start()
    try:
        with _killing_is_no_fault():
            yield pool
    except BaseException as error:
        if not isinstance(error, Exception):  # Ctrl-C, also as Dagster renames it
            for process in list((pool._processes or {}).values()):
                process.kill()  # libraries keep the signal from the workers
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ended.set()


def _widen(pool: ProcessPoolExecutor) -> None:
    """Let a result of some hundred kilobytes through the pipe in one piece, not in five.

    A piece costs a change of process on either side: together, half the time of a result.
    """
    with suppress(AttributeError, OSError):  # not on Linux, or more than a user may have
        pipe = pool._result_queue._reader.fileno()  # type: ignore[attr-defined]
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


@contextmanager
def _killing_is_no_fault() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise MachineError(f"{KILLED}; run the command again") from error


def _end_if_one_is_killed(pool: ProcessPoolExecutor, ended: threading.Event) -> None:
    """Break a pool of which a process was killed, even while it sent a result.

    The executor then reads on for ever: its own process has the pipe open for writing, too, so the
    rest never comes and the end is never reached. And the dead process may hold the lock for which
    the others wait.
    """
    while not ended.wait(_LOOKED_AT_S):
        processes = list((pool._processes or {}).values())
        if any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
            return


def _begin(threads: int, prepare: Callable[..., None], given: tuple[Any, ...]) -> None:
    os.environ["OMP_THREAD_LIMIT"] = str(threads)  # before a library reads it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    logging.getLogger("phasewatch").addFilter(_is_no_announcement)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(*given)


def _is_no_announcement(record: logging.LogRecord) -> bool:
    """Whether it is more than that kernels are compiled, which the parent says for all."""
    return record.module != "jit"


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # nobody waits for what this process does


class TrainingAhead:
    """Trains what a run is going to ask for, some variants at a time."""

    def __init__(self, pool: ProcessPoolExecutor, workspace: Workspace):
        self._pool, self._workspace = pool, workspace
        self._trainings: dict[tuple[str, str, str], Future[FittedModel]] = {}

    def fitted(self, project: Project, recipe: str, variant: str) -> FittedModel:
        """The fitted model; at the first call every stale variant of the recipe is begun."""
        dataset = project.existing("datasets", recipe).version
        if (dataset, recipe, variant) not in self._trainings:
            for name in sorted(v.name for v in VARIANTS):  # the order in which a run asks
                stage = project.stages[f"checkpoints/{name}"]
                if name == variant or project.workspace.force or (
                    not project.status(stage, recipe, verify=True).current
                ):  # fmt: skip
                    self._trainings[dataset, recipe, name] = self._pool.submit(
                        _fit, self._workspace, recipe, name
                    )
        with _killing_is_no_fault():
            return self._trainings.pop((dataset, recipe, variant)).result()


@contextmanager
def training_ahead(workspace: Workspace, count: int, prepare: Callable[[], None]) -> Iterator[None]:
    """Within, checkpoints are trained ``count`` at a time.

    Args:
        prepare: called in each process, once; it may set up logging.
    """
    if count < 2:
        yield
        return
    with worker_processes(count, prepare) as pool:
        token = _ahead.set(TrainingAhead(pool, workspace))
        try:
            yield
        finally:
            _ahead.reset(token)


def trained_ahead(project: Project, recipe: str, variant: str) -> FittedModel | None:
    """A model that was trained ahead, None where nothing is."""
    ahead = _ahead.get()
    return ahead.fitted(project, recipe, variant) if ahead else None


def _fit(workspace: Workspace, recipe: str, name: str) -> FittedModel:
    from stages.checkpoints import fit
    from stages.project import Project

    variant = next(v for v in VARIANTS if v.name == name)

    ended = False

    def progress(done: int, total: int, text: str) -> None:
        nonlocal ended
        ended = done >= total
        say(f"{done}/{total} {text}", last=ended)

    def say(text: str, *, last: bool) -> None:
        log.info(
            "checkpoints/%s %s: %s", name, recipe, text, extra={"progress": True, "last": last}
        )

    fitted = fit(Project(workspace), variant, recipe, progress, resumable=True)
    if not ended:  # its outcome is told when it is asked for, maybe minutes later
        say("stopped early", last=True)
    return fitted
