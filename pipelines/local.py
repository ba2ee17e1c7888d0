"""Runs the jobs in this process, one after the other: what `phasewatch run` does."""

import logging
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import dagster as dg

from episodes.store import StoreError
from evaluation.datasets import RECIPES
from pipelines.definitions import build_defs
from pipelines.home import prepare_dagster_home
from pipelines.partitions import Synced, sync_batches
from resources.workspace import SettingsError, Workspace, read_workspace

log = logging.getLogger("phasewatch")
_SHOWN = 5  # differences between index and files that are said in full
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class RunError(Exception):
    """A run failed; the message says which and why."""


def run_all(
    config: Path | None,
    overrides: dict[str, Any],
    recipes: list[str] | None,
    *,
    batches: list[str] | None = None,
    ingest_only: bool = False,
) -> Path | None:
    """Sync, ingest the stale batches, retrain the recipes; returns the report page's path.

    Args:
        batches: ingest these, stale or not, instead.

    Raises:
        SettingsError: the configuration is wrong, or there is no such recipe, batch or store.
        RunError: a run failed.
    """
    for recipe in recipes or ():
        if recipe not in RECIPES:
            raise SettingsError(f"no recipe {recipe!r}; there is {', '.join(RECIPES)}")
    workspace = read_workspace(config, overrides)
    with _instance() as instance:
        synced = _sync(instance, workspace)
        definitions = build_defs(workspace=workspace)
        for batch in batches or ():
            if batch not in synced.listing.batches:
                near = get_close_matches(batch, synced.listing.batches, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise SettingsError(f"{workspace.store_path}: no batch {batch!r}{hint}")
        for batch in batches or (synced.listing.batches if workspace.force else synced.stale):
            _execute(definitions, "ingest", batch, instance)
        if ingest_only:
            return None
        for recipe in recipes or RECIPES:
            _execute(definitions, "retrain", recipe, instance)
    return workspace.report_page


def sync_only(config: Path | None, overrides: dict[str, Any]) -> Synced:
    """Register the store's batches.

    Raises:
        SettingsError: the configuration is wrong, or there is no store.
    """
    with _instance() as instance:
        return _sync(instance, read_workspace(config, overrides))


def _instance() -> dg.DagsterInstance:
    prepare_dagster_home()
    return dg.DagsterInstance.get()


def _sync(instance: dg.DagsterInstance, workspace: Workspace) -> Synced:
    try:
        synced = sync_batches(instance, workspace)
    except StoreError as error:
        raise SettingsError(str(error)) from error
    differences = synced.listing.differences
    for difference in differences[:_SHOWN]:
        log.warning("store: %s", difference)
    if len(differences) > _SHOWN:
        log.warning("store: and %d more; see phasewatch validate", len(differences) - _SHOWN)
    log.info("%d batches, %d to ingest", len(synced.listing.batches), len(synced.stale))
    return synced


def _execute(
    definitions: dg.Definitions, job: str, partition: str, instance: dg.DagsterInstance
) -> None:
    result = definitions.resolve_job_def(job).execute_in_process(
        run_config=_QUIET, instance=instance, partition_key=partition, raise_on_error=False
    )
    if result.success:
        return
    failures = [
        f"{event.step_key}: {_reason(event.step_failure_data)}"
        for event in result.get_step_failure_events()
    ]
    raise RunError(f"{job} {partition} failed\n" + "\n".join(failures or ["see the run in the UI"]))


def _reason(failure: Any) -> str:
    """What a step's failure says to a person: our own refusal, or the innermost error."""
    if failure.user_failure_data and failure.user_failure_data.description:
        return failure.user_failure_data.description
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else "unknown"
