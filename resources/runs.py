"""Runs and the processes behind them: what a process may still write, and which run has none.

Dagster's code server watches the runs it launched, while it lives. A run started on the command
line, or one whose code server was killed too, is watched by nobody: it would count as under way for
ever, and keep its place in the training pool. Therefore every run bears the identity of its
process, one of a command from the moment it is recorded, and every sync ends those without one.
"""

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from features.files import writes_gated
from stages.retention import start_ticks

log = logging.getLogger("phasewatch")

PROCESS_TAG = "phasewatch/process"
_PROCESS = re.compile(
    r"(?P<run>[^:]+):(?P<process>(?P<host>[^:]*):[^:]*:(?P<pid>\d{1,9}):\d*)", re.ASCII
)
FINISHED = (
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
)
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED]
WITH_PROCESS = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""In which a run has a process, or will within ``START_S``. A queued one waits for the daemon."""

ASKED_S = 0.5
"""How long the answer holds that a run has not ended."""
START_S = 300.0
"""A process that starts has its run bear its identity by then; Dagster gives it 180 s to start."""
MAX_RUNTIME_S = 86_400.0
PARTITION_TAG, WILL_RETRY_TAG = "dagster/partition", "dagster/will_retry"
_MAX_RUNTIME_TAG = "dagster/max_runtime"


@contextmanager
def writing_for(run: dg.DagsterRun, instance: dg.DagsterInstance) -> Iterator[None]:
    """Within, nothing is put in place later than ``ASKED_S`` after Dagster counts the run as ended.

    A process can outlive its run: one cancelled by force, or given up by the run monitoring, may
    already have been replaced by another that writes to the same folder.

    One answer does for an artifact and its manifest.

    Raises:
        dg.Failure: at the first write after that, where the run has ended or was deleted.
    """
    holds_until = 0.0

    def ask() -> None:
        nonlocal holds_until
        if time.monotonic() < holds_until:
            return
        record = instance.get_run_by_id(run.run_id)
        state = "DELETED" if record is None else record.status.value
        if record is None or record.status in (*FINISHED, dg.DagsterRunStatus.CANCELING):
            raise dg.Failure(
                f"Run {run.run_id} is {state}, but its process runs on; its work is not kept.",
                allow_retries=False,
            )
        holds_until = time.monotonic() + ASKED_S

    note_process(run, instance)
    with writes_gated(ask):
        yield


def note_process(run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
    """Have the run bear this process, unless this one only executes a step of it."""
    if "execute_step" not in sys.argv and _process_of(run) is None:
        instance.add_run_tags(run.run_id, process_tag(run.run_id))


def process_tag(run_id: str) -> dict[str, str]:
    """The tag of a run whose process is this one.

    It has the id of the run: Dagster copies the tags of a run to those that repeat it.
    """
    return {PROCESS_TAG: f"{run_id}:{_process(os.getpid())}"}


def _process_of(run: dg.DagsterRun) -> tuple[str, int, str] | None:
    """Host, id and identity of the process that a run bears as its own; None: it bears none."""
    match = _PROCESS.fullmatch(run.tags.get(PROCESS_TAG, ""))
    if match is None or match["run"] != run.run_id:
        return None
    return match["host"], int(match["pid"]), match["process"]


def _process(pid: int) -> str:
    """``host:boot:pid:start``: the boot and the start, in clock ticks since then, tell a pid that
    was given again from the one before."""
    start = start_ticks(pid)
    return f"{socket.gethostname()}:{_boot()}:{pid}:{'' if start is None else start}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except OSError:
        return ""


@dataclass(frozen=True)
class DeadRun:
    """A run that counts as under way, and why it is not."""

    run: dg.DagsterRun
    why: str

    @property
    def name(self) -> str:
        partition = self.run.tags.get(PARTITION_TAG, "")
        return f"run {self.run.run_id[:8]} ({self.run.job_name} {partition}".strip() + ")"


def dead_runs(instance: dg.DagsterInstance) -> list[DeadRun]:
    """The runs that count as under way though no process can be behind them.

    Those are: a run whose process, on this machine, is gone; one that no process has taken up in
    time; one of another machine, of which nothing is known here, after its longest time.
    """
    records = instance.get_run_records(filters=dg.RunsFilter(statuses=WITH_PROCESS))
    found = ((record.dagster_run, _why_dead(record)) for record in records)
    return [DeadRun(run, why) for run, why in found if why]


def _why_dead(record: dg.RunRecord) -> str | None:
    run, now = record.dagster_run, time.time()
    found = _process_of(run)
    if found is None:
        waited = now - record.update_timestamp.timestamp()
        return f"no process picked it up within {START_S:.0f} s" if waited > START_S else None
    host, pid, process = found
    if host == socket.gethostname():
        return f"its process {process} is gone" if _process(pid) != process else None
    limit = run.tags.get(_MAX_RUNTIME_TAG, "")
    limit_s = float(limit) if limit.isdecimal() else MAX_RUNTIME_S
    age = now - record.create_timestamp.timestamp()
    if age <= limit_s:
        return None
    return f"it has run for {age:.0f} s without an end; its process {process} is on another machine"


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark as failed, or as canceled, what counts as under way and has no process.

    Says so in the log. Killed at any moment, it leaves nothing that the next call does not finish.

    Returns:
        The ids of those runs. Their places in pools are free again, and those of every run that
        has ended.
    """
    ended = []
    for dead in dead_runs(instance):
        run = instance.get_run_by_id(dead.run.run_id)
        if run is None or run.status not in WITH_PROCESS:
            continue  # ended meanwhile
        log.warning("%s is ended, %s: %s", dead.name, run.status.value, dead.why)
        why = f"{dead.why[0].upper()}{dead.why[1:]}."
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, why)
        else:
            instance.report_run_failed(run, why)
        ended.append(run.run_id)
    _free_places(instance)
    return ended


def _free_places(instance: dg.DagsterInstance) -> None:
    """Free the places in pools that runs hold which have ended."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    holding: set[str] = set()
    for pool in storage.get_concurrency_keys():
        info = storage.get_concurrency_info(pool)
        holding |= {slot.run_id for slot in info.claimed_slots}
        holding |= {step.run_id for step in info.pending_steps}
    for run_id in holding:
        run = instance.get_run_by_id(run_id)
        if run is None or run.status in FINISHED:
            storage.free_concurrency_slots_for_run(run_id)


def why_failed(failure: Any) -> str:
    """Why a step failed: its own message, or the innermost error's."""
    if failure.user_failure_data and failure.user_failure_data.description:
        return failure.user_failure_data.description
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    message = error.message.strip() if error else "unknown"
    return re.sub(r"^dagster\.[\w.]+: ", "", message)
