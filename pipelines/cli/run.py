"""Commands that make things: ``run``, ``sync``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from pipelines.cli import options
from pipelines.cli.console import USAGE, Document, fail, log_to_stderr, note, workspace_of


@dataclass(frozen=True)
class RunDocument(Document):
    """The runs that were needed, and the path of the page."""

    store: str
    artifacts: str
    runs: list[dict[str, Any]]
    report: str | None

    def text(self) -> Iterator[str]:
        if self.report is not None:
            yield self.report


def run(
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
    recipe: options.Recipes = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(metavar="BATCH", help="Ingest only this batch, if it is not current."),
    ] = None,
    ingest_only: Annotated[
        bool, typer.Option("--ingest-only", help="Stop when every batch is ingested.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild everything, reuse nothing.")
    ] = False,
) -> RunDocument:
    """Ingest and retrain what is not current.

    Prints the path of the report page. With --batch: ingests these batches and stops.
    """
    workspace = workspace_of(config, store, artifacts, force=force)
    from config.messages import shortened
    from pipelines.cli.execution import run_all
    from stages.drift import DriftStage
    from stages.project import Project
    from stages.retention import delete_items, disk_usage

    if recipe and (batch or ingest_only):
        option = "--batch" if batch else "--ingest-only"
        fail(f"{option} only ingests: it cannot be used with --recipe", USAGE)
    log_to_stderr()
    ingest_only = ingest_only or bool(batch)
    ran = run_all(workspace, recipe or None, batches=batch or None, ingest_only=ingest_only)
    if ran:
        delete_items(disk_usage(workspace.artifacts_path).unfinished)  # what killed processes left
    else:
        note("nothing to do: everything asked for is current")
    document = RunDocument(
        store=str(workspace.store_path),
        artifacts=str(workspace.artifacts_path),
        runs=[asdict(one) for one in ran],
        report=None if ingest_only else str(workspace.report_page),
    )
    project = Project(workspace)
    # a run needs no champion, but must not hide this
    if fault := project.champion_fault:
        fail(fault, **document.as_json())
    if ran and (drift := DriftStage.documents(project)):
        strong = [each for each in drift if each.severity == "fail"]
        names = f": {shortened([each.batch for each in strong], ', ', 3)}" if strong else ""
        seen = sum("seen_in_training" in {n.code for n in each.notes} for each in strong)
        note(
            f"drift: {len(strong)} of {len(drift)} batches differ strongly from the champion's "
            f"training data{names}"
            + (f"; it was trained on episodes of {seen} of these" if seen else "")
        )
    return document


@dataclass(frozen=True)
class SyncDocument(Document):
    """The store's batches as Dagster knows them now."""

    store: str
    batches: list[str]
    new: list[str]
    stale: list[str]
    differences: list[str]
    ended: list[str]  # ids of runs that had no process any more

    def text(self) -> Iterator[str]:
        stale = f"{len(self.stale)} not current" if self.stale else "all current"
        yield f"batches: {len(self.batches)}, {len(self.new)} new, {stale}"


def sync(
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> SyncDocument:
    """Register the batches with Dagster, and close runs that died.

    `make ui` does this first.
    """
    workspace = workspace_of(config, store, artifacts)
    from pipelines.cli.execution import sync_only

    synced = sync_only(workspace)
    return SyncDocument(
        store=str(workspace.store_path),
        batches=list(synced.listing.batches),
        new=synced.new,
        stale=synced.stale,
        differences=list(synced.listing.differences),
        ended=synced.ended,
    )
