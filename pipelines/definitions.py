"""Everything Dagster loads, assembled in one place."""

import dagster as dg

from assets.batches import batch_assets
from assets.champion import champion
from assets.checkpoints import CHECKPOINT_ASSETS, CONTRACT_CHECKS
from assets.datasets import datasets
from assets.drift import drift
from assets.evaluation import REPORT_ASSETS, comparisons, held_out_predictions, report
from assets.predictions import predictions
from pipelines.jobs import JOBS
from pipelines.schedules import nightly
from pipelines.sensors import new_batches
from resources.workspace import Workspace, keeping_paths, workspace_from_environment


def build_defs(*, workspace: Workspace | None = None) -> dg.Definitions:
    """The whole graph, over a workspace (default: the embedded store and ``artifacts/``)."""
    return dg.Definitions(
        assets=[
            batch_assets,
            datasets,
            *CHECKPOINT_ASSETS,
            held_out_predictions,
            *REPORT_ASSETS,
            comparisons,
            report,
            champion,
            predictions,
            drift,
        ],
        asset_checks=CONTRACT_CHECKS,
        jobs=JOBS,
        sensors=[new_batches],
        schedules=[nightly],
        resources={"workspace": keeping_paths(workspace or Workspace())},
        executor=dg.in_process_executor,
    )


defs = build_defs(workspace=workspace_from_environment())
