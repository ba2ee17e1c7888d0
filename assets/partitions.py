"""Partitions of the assets, who owns them, and how old they may get."""

from datetime import timedelta

import dagster as dg

from datasets.splits import RECIPES

BATCHES = dg.DynamicPartitionsDefinition(name="batches")
"""``<host>.<UTC day>`` of the episodes' ids; registered by ``pipelines.partitions``."""

RECIPE_PARTITIONS = dg.StaticPartitionsDefinition(list(RECIPES))

PARTITIONS = {"batch": BATCHES, "recipe": RECIPE_PARTITIONS, "": None}
"""By ``stages.stage.Partition``."""

EVERY_PARTITION = dg.AllPartitionMapping()
OWNERS = ["team:phasewatch"]
FRESH = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=2), fail_window=timedelta(days=7))
"""For what a store in use renews every day: older means that hosts or nights have gone silent."""
