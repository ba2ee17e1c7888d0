"""Telling a person's command what went wrong: a run that failed, a check that failed, a lost night.

The command is ``notify`` of the run configuration. It is called once for each: what it was told is
in ``notified.jsonl`` of the artifacts folder. The line is written before the command is called, so
that neither a restart nor a tick that is evaluated again calls it twice.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import dagster as dg

from assets.factory import stage_of
from config.disk import lock, sync
from features.files import fingerprint
from pipelines.requests import WORK_TAG
from resources.runs import FINISHED, PARTITION_TAG, WILL_RETRY_TAG, why_failed
from resources.workspace import WorkspaceResource
from stages.workspace import Workspace

log = logging.getLogger("phasewatch")

NOTIFIED_FILE = "notified.jsonl"
COMMAND_S = 30
TICK_S = 20
"""After so long a tick calls no further command: Dagster ends one after a minute."""

_FAILED = (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE)
_NOON = timedelta(hours=12)


@dataclass(frozen=True)
class Notification:
    """What went wrong, as the command gets it on its standard input."""

    id: str  # the same if it is told again
    kind: Literal["run_failed", "check_failed", "night_skipped"]
    reasons: list[str]
    artifacts: str  # of the project
    job: str = ""
    partition: str = ""  # batch or recipe
    run_id: str = ""
    asset: str = ""
    check: str = ""
    at: float = field(default_factory=lambda: round(time.time(), 3))  # Unix seconds, of the call


def notify(workspace: Workspace, notification: Notification) -> bool:
    """Call the command, if there is one and it was not told yet; returns whether it was called.

    Whatever becomes of the command is logged and nothing more.
    """
    if not workspace.notify:
        return False
    try:
        if not _claimed(workspace, notification):
            return False
    except OSError as error:
        log.error(
            "notify: %s: not called, because it cannot be recorded: %s", notification.id, error
        )
        return False
    _call(shlex.split(workspace.notify), notification)
    return True


def _claimed(workspace: Workspace, notification: Notification) -> bool:
    """Note what is told; False if it was noted before, by whatever process."""
    workspace.artifacts_path.mkdir(parents=True, exist_ok=True)
    with (workspace.artifacts_path / NOTIFIED_FILE).open("a+b") as file:
        lock(file.fileno())
        file.seek(0)
        told = f'{{"id": {json.dumps(notification.id)},'.encode()
        if any(line.startswith(told) for line in file):
            return False
        file.write(json.dumps(asdict(notification)).encode() + b"\n")
        file.flush()
        sync(file.fileno())
        return True


def _call(command: list[str], notification: Notification) -> None:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=2,  # standard output may be a command's document
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        log.error("notify: %s: %s", command[0], error)
        return
    try:
        process.communicate(json.dumps(asdict(notification)).encode() + b"\n", timeout=COMMAND_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.error("notify: %s: killed after %d s", command[0], COMMAND_S)
    else:
        if process.returncode:
            log.error("notify: %s: exit code %d", command[0], process.returncode)


# --- what went wrong


def notify_of_run(instance: dg.DagsterInstance, workspace: Workspace, run_id: str) -> None:
    """Tell of a run that has ended: of its checks that failed, and of the run if it failed."""
    run = instance.get_run_by_id(run_id)
    if workspace.notify and run is not None:
        for notification in _of_run(instance, workspace, run):
            notify(workspace, notification)


def _of_run(
    instance: dg.DagsterInstance, workspace: Workspace, run: dg.DagsterRun
) -> Iterator[Notification]:
    about: dict[str, Any] = {
        "artifacts": str(workspace.artifacts_path),
        "job": run.tags.get(WORK_TAG, run.job_name),  # a night's runs are of the job of all assets
        "partition": run.tags.get(PARTITION_TAG, ""),
        "run_id": run.run_id,
    }
    evaluations = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    for entry in instance.all_logs(run.run_id, of_type=evaluations):
        assert entry.dagster_event is not None
        found = entry.dagster_event.asset_check_evaluation_data
        if found.passed or found.severity is not dg.AssetCheckSeverity.ERROR:
            continue  # of a check that warns the UI tells
        asset = found.asset_key.to_user_string()
        yield Notification(
            id=f"check {run.run_id} {asset} {found.check_name}",
            kind="check_failed",
            reasons=[found.description or "failed"],
            asset=asset,
            check=found.check_name,
            **about,
        )
    # one that Dagster starts again by itself has not failed for good
    if run.status is dg.DagsterRunStatus.FAILURE and run.tags.get(WILL_RETRY_TAG) != "true":
        reasons = _reasons(instance, run)
        interrupted = dg.DagsterExecutionInterruptedError.__name__
        if not all(reason.endswith(interrupted) for reason in reasons):  # a person did that
            yield Notification(id=f"run {run.run_id}", kind="run_failed", reasons=reasons, **about)


def _reasons(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[str]:
    """Why each step failed; of a run without such a step, what Dagster says of it."""
    events = [e.dagster_event for e in instance.all_logs(run.run_id, of_type=set(_FAILED))]
    steps = [
        f"{stage_of(event.step_key)}: {why_failed(event.step_failure_data)}"
        for event in events
        if event and event.is_step_failure
    ]
    return steps or [event.message or "failed" for event in events if event]


def notify_of_night(workspace: Workspace, tick: datetime, reasons: list[str]) -> None:
    """Tell that a night does nothing, though there is something to do: once for the same reasons.

    Args:
        tick: of the night, which is that of the day on whose noon or after it began.
    """
    night = (tick - _NOON).date().isoformat()
    notify(
        workspace,
        Notification(
            id=f"night {night} {fingerprint(sorted(reasons))[:16]}",
            kind="night_skipped",
            reasons=reasons,
            artifacts=str(workspace.artifacts_path),
        ),
    )


# --- the sensor


def build_notifications(workspace: Workspace) -> dg.SensorDefinition:
    """The sensor that tells of runs, whoever started them. It is on where there is a command."""
    on = dg.DefaultSensorStatus.RUNNING if workspace.notify else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        minimum_interval_seconds=30,
        default_status=on,
        description="Calls the command `notify` of the run configuration for every run that "
        "failed and every check that failed.",
    )
    def notifications(
        context: dg.SensorEvaluationContext, workspace: WorkspaceResource
    ) -> dg.SkipReason:
        """Tells of what ended since the last tick; the first tells of nothing."""
        if not workspace.core.notify:
            return dg.SkipReason("notify is not set in the run configuration")
        now = datetime.now(UTC)
        since = datetime.fromisoformat(context.cursor) if context.cursor else now
        ended = context.instance.get_run_records(
            dg.RunsFilter(statuses=list(FINISHED), updated_after=since),
            order_by="update_timestamp",
            ascending=True,
        )
        began, done = time.monotonic(), 0
        for record in ended:
            if time.monotonic() - began > TICK_S:
                break
            notify_of_run(context.instance, workspace.core, record.dagster_run.run_id)
            since, done = record.update_timestamp, done + 1
        context.update_cursor(since.astimezone(UTC).isoformat())
        return dg.SkipReason(f"{done} of {len(ended)} runs that ended were checked")

    return notifications
