"""Everything Dagster loads, assembled in one place."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.batches import batch_assets
from assets.champion import champion
from assets.checkpoints import CHECKPOINT_ASSETS, CONTRACT_CHECKS
from assets.datasets import datasets
from assets.drift import drift
from assets.evaluation import REPORT_ASSETS, comparisons, held_out_predictions, report
from assets.predictions import predictions
from pipelines.executors import build_executor, execution_from_environment
from pipelines.jobs import JOBS
from pipelines.schedules import nightly
from pipelines.sensors import new_batches
from resources.workspace import Workspace, keeping_paths, workspace_from_environment


def build_defs(
    *, workspace: Workspace | None = None, execution: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """The whole graph.

    Args:
        workspace: what it works on; if absent, the embedded store and ``artifacts/``.
        execution: see ``build_executor``.
    """
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
        executor=build_executor(execution),
    )


defs = build_defs(workspace=workspace_from_environment(), execution=execution_from_environment())
