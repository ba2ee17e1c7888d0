"""Sensors: what starts a run when the store grows."""

import dagster as dg

from pipelines.jobs import ingest
from pipelines.partitions import sync_batches
from pipelines.staleness import decide_ingest, in_short
from resources.workspace import Workspace


@dg.sensor(job=ingest, minimum_interval_seconds=60)
def new_batches(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult:
    """Registers new batches and requests one run for each that is new or changed."""
    synced = sync_batches(context.instance, workspace)
    decision = decide_ingest(context.instance, workspace, synced)
    for reason in decision.waiting:
        context.log.warning(reason)
    if decision.requests:
        return dg.SensorResult(run_requests=decision.requests)
    return dg.SensorResult(
        skip_reason=in_short(decision.waiting)
        or f"all {len(synced.listing.batches)} batches are current"
    )
