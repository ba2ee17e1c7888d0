"""Runs the jobs in this process, one after the other: what `phasewatch run` does."""

import logging
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import dagster as dg

from episodes.store import StoreError
from evaluation.datasets import RECIPES
from pipelines.definitions import build_defs
from pipelines.home import prepare_dagster_home
from pipelines.partitions import Synced, sync_batches
from resources.workspace import SettingsError, Workspace

log = logging.getLogger("phasewatch")
_SHOWN = 5  # differences between index and files that are said in full
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class RunError(Exception):
    """A run failed; the message says which and why."""


@dataclass(frozen=True)
class Ran:
    """A run that ended well."""

    job: str  # ingest or retrain
    partition: str  # batch or recipe
    run_id: str
    made: list[str]  # assets, in the order of the run
    reused: list[str]  # assets found as they would have been made


def run_all(
    workspace: Workspace,
    recipes: list[str] | None,
    *,
    batches: list[str] | None = None,
    ingest_only: bool = False,
) -> list[Ran]:
    """Sync, ingest the stale batches, retrain the recipes (None: all); returns the runs.

    Args:
        batches: ingest these, stale or not, instead.

    Raises:
        SettingsError: there is no such recipe, batch or store.
        RunError: a run failed; those after it were not started.
    """
    for recipe in recipes or ():
        if recipe not in RECIPES:
            raise SettingsError(f"no recipe {recipe!r}; there is {', '.join(RECIPES)}")
    with _instance() as instance:
        synced = _sync(instance, workspace)
        definitions = build_defs(workspace=workspace)
        for batch in batches or ():
            if batch not in synced.listing.batches:
                near = get_close_matches(batch, synced.listing.batches, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise SettingsError(f"{workspace.store_path}: no batch {batch!r}{hint}")
        stale = batches or (synced.listing.batches if workspace.force else synced.stale)
        return [
            _execute(definitions, job, partition, instance)
            for job, partitions in (
                ("ingest", stale),
                ("retrain", () if ingest_only else recipes or RECIPES),
            )
            for partition in partitions
        ]


def sync_only(workspace: Workspace) -> Synced:
    """Register the store's batches.

    Raises:
        SettingsError: there is no store.
    """
    with _instance() as instance:
        return _sync(instance, workspace)


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
) -> Ran:
    result = definitions.resolve_job_def(job).execute_in_process(
        run_config=_QUIET, instance=instance, partition_key=partition, raise_on_error=False
    )
    if result.success:
        made: dict[bool, list[str]] = {False: [], True: []}
        for event in result.get_asset_materialization_events():
            found = event.materialization.metadata.get("reused")
            made[bool(found and found.value)].append(
                event.materialization.asset_key.to_user_string()
            )
        return Ran(job, partition, result.run_id, made[False], made[True])
    failures = [
        f"{event.step_key}: {_reason(event.step_failure_data)}"
        for event in result.get_step_failure_events()
    ]
    raise RunError(
        f"{job} {partition} failed (run {result.run_id[:8]})\n"
        + "\n".join(failures or ["see the run in the UI"])
    )


def _reason(failure: Any) -> str:
    """What a step's failure says to a person: our own refusal, or the innermost error."""
    if failure.user_failure_data and failure.user_failure_data.description:
        return failure.user_failure_data.description
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else "unknown"
