"""What starts runs by itself: the sensor of new batches and the nightly schedule.

Batches are scored by the sensor and not by an ``AutomationCondition``, which Dagster recommends
where the cause of a run is another asset's materialization. Here it is not: a promotion on the
command line, artifacts copied from another machine and a champion that no longer loads are on disk,
and in no record of Dagster's.
"""

import os
from datetime import timedelta

import dagster as dg

from config.messages import shortened
from episodes.environment import collector_paused
from pipelines.notifications import notify_of_night
from pipelines.partitions import sync_batches
from pipelines.requests import (
    WORK_TAG,
    RunDecision,
    decide,
    decide_ingest,
    decide_scoring,
    ingested_since,
    scoring_champion,
    under_way,
)
from resources.workspace import WorkspaceResource
from stages.workspace import Workspace

NIGHT = os.environ.get("PHASEWATCH_NIGHT") or "*/5 2-5 * * *"
"""Cron expression (UTC) of the ticks of a night."""

ONE_NIGHT = timedelta(hours=12)

# A schedule has one job, and Dagster allows a job one partitioning only. Batches and recipes are
# partitioned differently, so it is the job Dagster makes of all assets; each request names its
# assets and its partition.
_ALL_ASSETS_JOB = "__ASSET_JOB"


@dg.sensor(
    job_name="ingest",  # and score, see pipelines.graph
    minimum_interval_seconds=60,
    description=(
        "Registers new batches, ingests those that are new or changed, and scores them with the "
        "champion."
    ),
)
def new_batches(
    context: dg.SensorEvaluationContext, workspace: WorkspaceResource
) -> dg.SensorResult:
    """Registers new batches and requests runs that ingest and score; ``decide`` says how many."""
    with collector_paused():
        synced = sync_batches(context.instance, workspace.core)
        for run in synced.ended:
            context.log.warning(f"run {run[:8]} no longer had a process and was ended")
        ingests = decide_ingest(context.instance, synced)
        scorings = decide_scoring(context.instance, synced)
        waiting = [*ingests.waiting, *scorings.waiting]
        for reason in waiting:
            context.log.warning(reason)
        requests = [
            request.with_replaced_attrs(job_name=request.tags[WORK_TAG])
            for request in (*ingests.requests, *scorings.requests)
        ]
        if requests:
            return dg.SensorResult(run_requests=requests)
        champion = scoring_champion(synced.project)
        return dg.SensorResult(
            skip_reason=shortened(waiting)
            or f"all {len(synced.listing.batches)} batches are current"
            + (f", and scored with {champion.name}" if champion else "")
        )


@dg.schedule(
    cron_schedule=NIGHT,
    job_name=_ALL_ASSETS_JOB,
    description=(
        "Ingests what is stale, then retrains each recipe whose data or settings changed: one "
        "step per tick."
    ),
)
def nightly(
    context: dg.ScheduleEvaluationContext, workspace: WorkspaceResource
) -> list[dg.RunRequest] | dg.SkipReason:
    """Syncs and ingests what is stale; then retrains each recipe that is stale.

    A night has many ticks, and each takes the next step that is due, from what is on disk and under
    way: however long the ingest takes, a retrain is requested only when it is done. Episodes that
    reach a batch after its ingest wait for the next night: a store in use is never at rest.
    """
    try:
        decision = _next_step(context, workspace.core)
    except Exception as error:  # the tick fails, and with it this step of the night
        reason = f"{type(error).__name__}: {error}"
        notify_of_night(workspace.core, context.scheduled_execution_time, [reason])
        raise
    if decision.requests:
        return decision.requests
    if decision.given_up:
        notify_of_night(workspace.core, context.scheduled_execution_time, decision.given_up)
    return dg.SkipReason(shortened(decision.waiting))


def _next_step(context: dg.ScheduleEvaluationContext, workspace: Workspace) -> RunDecision:
    """What a tick of a night requests, or why it requests nothing."""
    instance = context.instance
    synced = sync_batches(instance, workspace)
    since = context.scheduled_execution_time - ONE_NIGHT
    late = {due.key for due in ingested_since(instance, synced.due, since)}
    ingests = decide_ingest(instance, synced, [due for due in synced.due if due.key not in late])
    if ingests.requests or ingests.waiting:
        return ingests
    running = under_way(instance, "ingest")
    if running:
        return RunDecision(waiting=[f"{len(running)} batches are being ingested"])
    due = synced.project.due("retrain") if synced.ingested else []
    due = [item for item in due if item.key] or due  # the page comes last
    if not due:
        have, wait = ("has", "waits") if len(late) == 1 else ("have", "wait")
        later = f"; {len(late)} {have} gained episodes since, which {wait} for the next night"
        return RunDecision(
            waiting=[
                f"nothing changed: all {len(synced.listing.batches)} batches are ingested, and "
                "every recipe is trained on them" + (later if late else "")
            ]
        )
    return decide(instance, synced.project, due)
