"""What assets are partitioned by: batches grow with the corpus, recipes are fixed."""

import dagster as dg

from evaluation.datasets import RECIPES

BATCHES = dg.DynamicPartitionsDefinition(name="batches")
"""``<host>.<UTC day>`` of the episodes' ids; registered by ``pipelines.partitions``."""

RECIPE_PARTITIONS = dg.StaticPartitionsDefinition(list(RECIPES))

OWNERS = ["team:phasewatch"]
EVERY_PARTITION = dg.AllPartitionMapping()
