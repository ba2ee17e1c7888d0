"""Commands that make things: ``run``, ``sync``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer

from pipelines.cli import options
from pipelines.cli.console import FAILED, TEXT_ONLY, USAGE, Document, failing, note, workspace_of


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
        typer.Option(metavar="KEY", help="Ingest only this batch, even if it is current."),
    ] = None,
    ingest_only: Annotated[
        bool, typer.Option("--ingest-only", help="Stop when every batch is ingested.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild everything, reuse nothing.")
    ] = False,
) -> RunDocument:
    """Ingest and retrain what is not current.

    Prints the path of the report. With --batch: ingests these batches and stops.
    """
    workspace = workspace_of(config, store, artifacts, **({"force": True} if force else {}))
    from pipelines.cli.runs import RunError, run_all
    from stages.workspace import SettingsError

    _log_to_stderr()
    ingest_only = ingest_only or bool(batch)
    with failing({SettingsError: USAGE, RunError: FAILED}):
        ran = run_all(workspace, recipe or None, batches=batch or None, ingest_only=ingest_only)
    if not ran:
        note("everything is current, nothing to do")
    return RunDocument(
        store=str(workspace.store_path),
        artifacts=str(workspace.artifacts_path),
        runs=[asdict(one) for one in ran],
        report=None if ingest_only else str(workspace.report_page),
    )


@dataclass(frozen=True)
class Batches(Document):
    """The store's batches as Dagster knows them now."""

    store: str
    batches: list[str]
    new: list[str]
    stale: list[str]
    differences: list[str]
    summary: str = field(metadata=TEXT_ONLY)

    def text(self) -> Iterator[str]:
        yield self.summary


def sync(
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> Batches:
    """Register the store's batches with Dagster.

    `make ui` does this first.
    """
    workspace = workspace_of(config, store, artifacts)
    from pipelines.cli.runs import sync_only
    from stages.workspace import SettingsError

    with failing({SettingsError: USAGE}):
        synced = sync_only(workspace)
    batches = list(synced.listing.batches)
    return Batches(
        store=str(workspace.store_path),
        batches=batches,
        new=synced.new,
        stale=synced.stale,
        differences=list(synced.listing.differences),
        summary=f"{len(batches)} batches, {len(synced.new)} new, {len(synced.stale)} to ingest",
    )


def _log_to_stderr() -> None:
    """Progress and warnings on stderr: every line on a terminal, fewer in a file."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_once())
    if not sys.stderr.isatty():
        handler.addFilter(_sparse(every_s=30.0))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("phasewatch").setLevel(logging.INFO)


def _once() -> Callable[[logging.LogRecord], bool]:
    """A filter that lets each warning through once."""
    seen: set[str] = set()

    def first_time(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        new = record.getMessage() not in seen
        seen.add(record.getMessage())
        return new

    return first_time


def _sparse(every_s: float) -> Callable[[logging.LogRecord], bool]:
    """A filter that lets progress through once in a while, and everything else always."""
    last = [0.0]

    def due(record: logging.LogRecord) -> bool:
        if not getattr(record, "progress", False):
            return True
        if record.created - last[0] < every_s:
            return False
        last[0] = record.created
        return True

    return due
