"""Sensors: what starts a run when the store grows."""

import dagster as dg

from pipelines.jobs import ingest
from pipelines.partitions import sync_batches
from resources.workspace import Workspace


@dg.sensor(job=ingest, minimum_interval_seconds=60)
def new_batches(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult:
    """Registers new batches and requests one run for each that is new or changed."""
    synced = sync_batches(context.instance, workspace)
    requests = [
        dg.RunRequest(
            run_key=f"{batch}:{workspace.fingerprint(synced.listing.batches[batch])}",
            partition_key=batch,
        )
        for batch in synced.stale
    ]
    if not requests:
        return dg.SensorResult(skip_reason=f"all {len(synced.listing.batches)} batches are current")
    return dg.SensorResult(run_requests=requests)
