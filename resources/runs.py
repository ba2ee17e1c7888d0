"""Runs and the processes behind them: what a process may still write, and which run has none.

Dagster's code server watches the runs it launched. A run started on the command line is watched by
nobody: killed, it would count as under way for ever, and keep its place in the training pool.
"""

import multiprocessing
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from features.files import writes_gated

PROCESS_TAG = "phasewatch/process"
WORKER = "phasewatch run"
"""The name of a worker process of a command, which no code server watches either."""
FINISHED = (
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
)
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED]


@contextmanager
def writing_for(run: dg.DagsterRun, instance: dg.DagsterInstance) -> Iterator[None]:
    """Within, nothing is put in place once Dagster counts the run as ended.

    A process can outlive its run: one cancelled by force, or given up by the run monitoring, may
    already have been replaced by another that writes to the same folder.

    Raises:
        dg.Failure: at the next write, where the run has ended or was deleted.
    """

    def ask() -> None:
        record = instance.get_run_by_id(run.run_id)
        state = "DELETED" if record is None else record.status.value
        if record is None or record.status in (*FINISHED, dg.DagsterRunStatus.CANCELING):
            raise dg.Failure(
                f"Run {run.run_id} is {state}, its process is not: what it made is not kept.",
                allow_retries=False,
            )

    note_process(run, instance)
    with writes_gated(ask):
        yield


def note_process(run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
    """Tag the run with this process, where it ends with it and no code server watches it."""
    ours = multiprocessing.parent_process() is None or (
        multiprocessing.current_process().name == WORKER
    )
    if ours and "execute_step" not in sys.argv:
        instance.add_run_tags(run.run_id, {PROCESS_TAG: _process(os.getpid())})


def _process(pid: int) -> str:
    """``host:pid:start``: the start, in clock ticks since boot, tells a reused pid apart."""
    try:
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        start = ""
    return f"{socket.gethostname()}:{pid}:{start}"


def is_gone(run: dg.DagsterRun) -> bool:
    """Whether the run's process was on this machine and is no more."""
    process = run.tags.get(PROCESS_TAG, "")
    host, _, pid = process.rpartition(":")[0].rpartition(":")
    return host == socket.gethostname() and _process(int(pid)) != process


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark as failed what counts as under way though its process, on this machine, is gone.

    Returns:
        The ids of those runs. Their places in pools are free again.
    """
    ended = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        if not is_gone(run):
            continue
        instance.report_run_failed(run, f"Its process {run.tags[PROCESS_TAG]} was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run.run_id)
    return ended


def why_failed(failure: Any) -> str:
    """Why a step failed: its own message, or the innermost error's."""
    if failure.user_failure_data and failure.user_failure_data.description:
        return failure.user_failure_data.description
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    message = error.message.strip() if error else "unknown"
    return re.sub(r"^dagster\.[\w.]+: ", "", message)
