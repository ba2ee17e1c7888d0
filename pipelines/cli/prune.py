"""The command ``prune``: drops what is old."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli import options
from pipelines.cli.console import USAGE, Bytes, Document, Table, fail, workspace_of
from pipelines.home import OLD_DAYS, dagster_home, dagster_instance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import dagster as dg

    from pipelines.pruning import PruneResult
    from stages.workspace import Workspace

_SHOWN = 20  # artifacts


@dataclass(frozen=True)
class PruneDocument(Document):
    """What went, or would go."""

    pruned: PruneResult
    dry_run: bool

    def as_json(self) -> dict[str, Any]:
        return {"dry_run": self.dry_run, **self.pruned.as_json()}

    def text(self) -> Iterator[str | Table]:
        from evaluation.wording import plural

        pruned, records = self.pruned, self.pruned.records
        age = plural(pruned.older_than_days, "day")
        would = "to be deleted" if self.dry_run else "deleted"
        yield (
            f"records older than {age}, {would}: {records.runs} runs, the "
            f"logs of {records.logs} other runs, {records.events} events; "
            f"{Bytes(records.n_bytes)}, leaving a database of {Bytes(pruned.database_bytes)}"
        )
        freed = sum(item.n_bytes for item in pruned.discards)
        yield (
            f"artifacts, {would}: {len(pruned.discards)}; {Bytes(freed)}, leaving "
            f"{Bytes(pruned.artifacts_bytes)}"
        )
        if pruned.discards:
            shown = pruned.discards[:_SHOWN]
            yield Table(
                ("what", "size", "why"),
                [(str(item.path), Bytes(item.n_bytes), item.why) for item in shown],
            )
            if more := len(pruned.discards) - len(shown):
                yield f"and {more} more; --json lists all"
        if pruned.over:
            yield (
                f"still {Bytes(pruned.over)} above the budget, because the rest is in use: raise "
                "artifacts_budget_gb, or delete something by hand"
            )


def prune(
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", metavar="AGE", help="Delete records older than this, such as 30d."
        ),
    ] = f"{OLD_DAYS}d",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted; change nothing.")
    ] = False,
) -> PruneDocument:
    """Delete old Dagster records, and old artifacts to save space.

    Artifacts are deleted only if the folder is larger than the setting artifacts_budget_gb. The
    last materialization and the last checks of every asset and partition stay. Current artifacts,
    and models that were ever champion, are never deleted.
    """
    days = re.fullmatch(r"([1-9]\d{0,3})d", older_than)
    if days is None:
        fail(
            f"--older-than must be 1d to 9999d, such as {OLD_DAYS}d, got {older_than!r}",
            USAGE,
        )
    workspace = workspace_of(config, store, artifacts, must_exist=True)
    from pipelines.pruning import prune as prune_all

    with _records(workspace, dry_run=dry_run) as instance:
        return PruneDocument(prune_all(instance, workspace, int(days[1]), dry_run=dry_run), dry_run)


def _records(workspace: Workspace, *, dry_run: bool) -> AbstractContextManager[dg.DagsterInstance]:
    """Dagster's records; a dry run makes none where there are none."""
    import dagster as dg

    if dry_run and not (dagster_home(workspace) / "dagster.yaml").exists():
        return dg.DagsterInstance.ephemeral()
    return dagster_instance(workspace)
