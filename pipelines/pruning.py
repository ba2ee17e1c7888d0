"""Deletes old Dagster records, and artifacts if the folder is over its budget."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from config.paths import DAGSTER_HOME
from features.files import write_atomically
from pipelines.home import OLD_DAYS
from resources.records import PrunedRecords, prune_records, record_bytes
from resources.workspace import WorkspaceResource
from stages.retention import PRUNED_FILE, Discard, delete_items, disk_usage, items_to_discard
from stages.workspace import Workspace

MORNING = "30 6 * * *"
"""Cron expression (UTC) of the schedule: when a night's retrain is usually done."""


@dataclass(frozen=True)
class PruneResult:
    """What went, or would go."""

    at: str  # UTC, RFC 3339
    older_than_days: int
    records: PrunedRecords
    database_bytes: int  # afterwards
    artifacts_bytes: int  # afterwards, all of the folder
    budget_bytes: int  # 0: there is none
    discards: list[Discard] = field(default_factory=list)

    @property
    def over(self) -> int:
        """Bytes above the budget that nothing could be dropped for."""
        return max(0, self.artifacts_bytes - self.budget_bytes) if self.budget_bytes else 0

    def as_json(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "older_than_days": self.older_than_days,
            "records": asdict(self.records),
            "database_bytes": self.database_bytes,
            "artifacts_bytes": self.artifacts_bytes,
            "budget_bytes": self.budget_bytes,
            "over_bytes": self.over,
            "artifacts": [{**asdict(item), "path": str(item.path)} for item in self.discards],
        }


def prune(
    instance: dg.DagsterInstance,
    workspace: Workspace,
    older_than_days: int = OLD_DAYS,
    *,
    dry_run: bool = False,
) -> PruneResult:
    """Drop old records and, above the budget, artifacts that nothing reads any more.

    Args:
        older_than_days: age of what Dagster recorded, at least one.
        dry_run: only say what would go.

    Raises:
        ChampionError: the champion's history cannot be read.
    """
    assert older_than_days >= 1, older_than_days  # of a run under way nothing may go
    now = datetime.now(UTC)
    records = prune_records(instance, now - timedelta(days=older_than_days), dry_run=dry_run)
    used = disk_usage(workspace.artifacts_path)
    if dry_run and DAGSTER_HOME in used.by_kind:
        used.by_kind[DAGSTER_HOME] -= records.n_bytes
    going = items_to_discard(workspace, used)
    if not dry_run:
        going = delete_items(going)
    pruned = PruneResult(
        at=now.isoformat(timespec="seconds"),
        older_than_days=older_than_days,
        records=records,
        database_bytes=record_bytes(instance) - (records.n_bytes if dry_run else 0),
        artifacts_bytes=used.n_bytes - sum(item.n_bytes for item in going),
        budget_bytes=int(workspace.artifacts_budget_gb * 1e9),
        discards=going,
    )
    if not dry_run:
        text = json.dumps(pruned.as_json(), indent=1, allow_nan=False)
        write_atomically(workspace.artifacts_path / PRUNED_FILE, text.encode() + b"\n")
    return pruned


class PruneOptions(dg.Config):
    """What a run of the job may choose."""

    older_than_days: int = OLD_DAYS


@dg.op(name="drop_what_is_old", out=dg.Out(dg.Nothing))
def drop_what_is_old(
    context: dg.OpExecutionContext, config: PruneOptions, workspace: WorkspaceResource
) -> None:
    """Drops old records and what is above the budget; see ``phasewatch prune``."""
    pruned = prune(context.instance, workspace.core, max(1, config.older_than_days))
    context.log.info(json.dumps(pruned.as_json()))


@dg.job(
    name="prune",
    description="Delete old Dagster records, and artifacts if the folder is over its budget.",
)
def prune_job() -> None:
    drop_what_is_old()


daily_prune = dg.ScheduleDefinition(
    name="daily_prune",
    job=prune_job,
    cron_schedule=MORNING,
    description=f"Deletes records older than {OLD_DAYS} days, and artifacts if the folder is over "
    "its budget. The last materialization and the last checks of every asset and partition stay.",
)
