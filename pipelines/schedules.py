"""Schedules: the nightly retrain."""

import os
from dataclasses import replace
from datetime import timedelta

import dagster as dg

from pipelines.partitions import sync_batches
from pipelines.staleness import (
    decide,
    decide_ingest,
    in_short,
    ingested_since,
    stale_recipes,
    under_way,
)
from resources.workspace import Workspace

NIGHT = os.environ.get("PHASEWATCH_NIGHT") or "*/5 2-5 * * *"
"""Cron expression (UTC) of the ticks of a night."""

ONE_NIGHT = timedelta(hours=12)

# A schedule has one job. Batches and recipes are partitioned differently, so it is the one Dagster
# makes of all assets, and each request names its assets and its partition.
_ALL_ASSETS_JOB = "__ASSET_JOB"


@dg.schedule(cron_schedule=NIGHT, job_name=_ALL_ASSETS_JOB)
def nightly(
    context: dg.ScheduleEvaluationContext, workspace: Workspace
) -> list[dg.RunRequest] | dg.SkipReason:
    """Syncs and ingests what is stale; then retrains each recipe whose dataset changed.

    A night has many ticks, and each does the next step that is due, from what is on disk and under
    way: however long the ingest takes, a retrain is requested only when it is done. Episodes that
    reach a batch after its ingest wait for the next night: a store in use is never at rest.
    """
    instance = context.instance
    synced = sync_batches(instance, workspace)
    since = context.scheduled_execution_time - ONE_NIGHT
    due = [b for b in synced.stale if not ingested_since(instance, workspace, b, since)]
    n_late = len(synced.stale) - len(due)
    ingests = decide_ingest(instance, workspace, replace(synced, stale=due))
    if ingests.requests:
        return ingests.requests
    if ingests.waiting:
        return dg.SkipReason(in_short(ingests.waiting))
    running = under_way(instance, "ingest")
    if running:
        return dg.SkipReason(f"{len(running)} batches are being ingested")
    recipes = stale_recipes(workspace, synced.listing)
    if not recipes:
        return dg.SkipReason(
            f"nothing changed: all {len(synced.listing.batches)} batches are ingested, and every "
            "recipe is trained on them"
            + (f"; {n_late} gained episodes since, for the next night" if n_late else "")
        )
    retrains = decide(instance, recipes)
    return retrains.requests or dg.SkipReason(in_short(retrains.waiting))
