"""Software-defined assets, a module a stage: each calls the core and reports, nothing else."""

import warnings

# Partitioned checks are a preview in Dagster 1.13 and what lets automation look at the right
# partition; the pinned version and the tests guard against a change.
warnings.filterwarnings("ignore", message="Specifying a partitions_def on an AssetCheckSpec")
