"""What assets are partitioned by, who owns them, and how old they may get."""

from datetime import timedelta

import dagster as dg

from evaluation.datasets import RECIPES

BATCHES = dg.DynamicPartitionsDefinition(name="batches")
"""``<host>.<UTC day>`` of the episodes' ids; registered by ``pipelines.partitions``."""

RECIPE_PARTITIONS = dg.StaticPartitionsDefinition(list(RECIPES))

OWNERS = ["team:phasewatch"]
FRESH = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=2), fail_window=timedelta(days=7))
"""Of what a lab in use makes anew every day: older means that hosts or nights have gone silent."""
EVERY_PARTITION = dg.AllPartitionMapping()
