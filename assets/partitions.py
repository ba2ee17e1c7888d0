"""Partitions of the assets, who owns them, and how old they may get."""

from datetime import timedelta

import dagster as dg

from datasets.splits import RECIPES
from stages.stage import Stage

BATCHES = dg.DynamicPartitionsDefinition(name="batches")
"""``<host>.<UTC day>`` of the episodes' ids; registered by ``pipelines.partitions``."""

RECIPE_PARTITIONS = dg.StaticPartitionsDefinition(list(RECIPES))

PARTITIONS = {"batch": BATCHES, "recipe": RECIPE_PARTITIONS, "": None}
"""By ``stages.stage.Partition``."""

EVERY_PARTITION = dg.AllPartitionMapping()
OWNERS = ["team:phasewatch"]
FRESH = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=2), fail_window=timedelta(days=7))
"""For what a store in use renews every day: older means that hosts or nights have gone silent."""


BATCHES_PER_RUN = 500
"""A run records its batches in one database, and a run that dies is done again: both stay small."""


def backfill_policy(stage: Stage) -> dg.BackfillPolicy | None:
    """Many batches in a run: what comes before and after a batch's work costs more than the work.

    What is made of other outputs has another policy, so that Dagster makes it in a run after them.
    """
    if stage.partition != "batch":
        return None
    if stage.inputs:
        return dg.BackfillPolicy.multi_run(BATCHES_PER_RUN)
    return dg.BackfillPolicy.single_run()
