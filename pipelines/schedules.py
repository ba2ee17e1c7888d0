"""Schedules: the nightly retrain."""

import dagster as dg

from assets.partitions import RECIPE_PARTITIONS
from pipelines.jobs import retrain


@dg.schedule(job=retrain, cron_schedule="0 2 * * *")
def nightly(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:  # noqa: ARG001
    """One retrain a recipe; stages whose inputs did not change reuse what is there."""
    return [dg.RunRequest(partition_key=key) for key in RECIPE_PARTITIONS.get_partition_keys()]
