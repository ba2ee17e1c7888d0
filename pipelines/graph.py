"""The whole graph, assembled in one place."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.factory import build_assets, build_checks
from pipelines.automation import new_batches, nightly
from pipelines.executors import build_executor
from pipelines.jobs import build_jobs
from pipelines.notifications import build_notifications
from pipelines.pruning import daily_prune, prune_job
from resources.workspace import resource_of
from stages.registry import STAGES
from stages.workspace import Workspace


def build_defs(
    *, workspace: Workspace | None = None, execution: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """The whole graph.

    Args:
        workspace: what it works on; by default the embedded store and ``artifacts/``.
        execution: see ``build_executor``.
    """
    workspace, jobs = workspace or Workspace(), build_jobs()
    batches = new_batches.with_updated_jobs([jobs["ingest"], jobs["score"]])
    return dg.Definitions(
        assets=build_assets(STAGES.values()),
        asset_checks=build_checks(STAGES.values()),
        jobs=[*jobs.values(), prune_job],
        sensors=[batches, build_notifications(workspace)],
        schedules=[nightly, daily_prune],
        resources={"workspace": resource_of(workspace)},
        executor=build_executor(execution),
    )
