"""What has to be made anew, and whether a run for it may be requested now.

Both are found by fingerprint, from the store's index and the manifests on disk; Dagster's records
say only which runs are under way and which have failed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from assets.checkpoints import checkpoint_identity
from assets.datasets import dataset_identity
from episodes.store import StoreListing
from evaluation.datasets import RECIPES
from features.manifest import read_manifest
from models.checkpoint import CheckpointError, checkpoint_path, read_header
from models.registry import VARIANTS
from pipelines.jobs import INGEST_KEYS, RETRAIN_KEYS
from pipelines.partitions import Synced
from resources.guards import batch_faults
from resources.runs import UNFINISHED
from resources.workspace import Workspace

MAX_FAILURES = 3
"""After so many failed runs on the same input in a row, only a person starts another."""

WORK_TAG = "phasewatch/work"
IDENTITY_TAG = "phasewatch/identity"
_SHOWN = 5
_PARTITION_TAG = "dagster/partition"
_WILL_RETRY_TAG, _RETRIED_TAG = "dagster/will_retry", "dagster/auto_retry_run_id"
_KEYS = {"ingest": frozenset(INGEST_KEYS), "retrain": frozenset(RETRAIN_KEYS)}


@dataclass(frozen=True)
class Work:
    """A run that would make something new."""

    job: str  # ingest or retrain
    partition: str  # batch or recipe
    identity: str  # of everything it is made from
    why: str

    @property
    def name(self) -> str:
        return f"{self.job} {self.partition}"

    @property
    def keys(self) -> list[dg.AssetKey]:
        return INGEST_KEYS if self.job == "ingest" else RETRAIN_KEYS


def stale_recipes(workspace: Workspace, listing: StoreListing) -> list[Work]:
    """Recipes of which the dataset, a checkpoint or a report is not of the shards on disk.

    Batches that are not ingested at all are left out of sight here: they come first.
    """
    versions = workspace.shard_versions(listing)
    found = []
    for recipe in RECIPES if versions else ():
        wanted = dataset_identity(workspace, recipe, versions)
        why = _why_stale(workspace, recipe, wanted, versions)
        if why:
            found.append(Work("retrain", recipe, wanted, why))
    return found


def _why_stale(
    workspace: Workspace, recipe: str, wanted: str, versions: Mapping[str, Mapping[str, str]]
) -> str | None:
    dataset = read_manifest(workspace.dataset_folder(recipe))
    if dataset is None or not dataset.complete:
        return "there is no dataset"
    if dataset.fingerprint != wanted:
        before = dataset.facts["batches"]
        changed = sorted(
            batch for batch in versions.keys() | before if versions.get(batch) != before.get(batch)
        )
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{changed[0]}{more} changed" if changed else "the split policy changed"
    for which in VARIANTS:
        path = checkpoint_path(workspace.checkpoint_folder(recipe), which)
        try:
            trained_from = read_header(path)["train_meta"].get("fingerprint")
        except CheckpointError:
            return f"{which.name} was not trained"
        if trained_from != checkpoint_identity(workspace, which, dataset.version):
            return f"{which.name} was trained from other data, settings or layout"
        if read_manifest(workspace.report_folder(recipe) / which.name) is None:
            return f"{which.name} was not evaluated"
    if read_manifest(workspace.comparisons_folder(recipe)) is None:
        return "its models were not compared"
    return None


@dataclass(frozen=True)
class Decision:
    """Which runs to request, and what was said of the others."""

    requests: list[dg.RunRequest]
    waiting: list[str]  # under way, or given up: a reason each


def decide(instance: dg.DagsterInstance, work: list[Work]) -> Decision:
    """Requests for the work that is not under way and has not failed too often.

    A run key is partition, identity and the number of runs there were for that identity: asking
    twice gives one run, and asking again after a failure, or after an artefact was lost, another.
    """
    unfinished = instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))
    decision = Decision([], [])
    for item in work:
        busy = next((run for run in unfinished if _makes(run, item)), None)
        if busy is not None:
            decision.waiting.append(f"{item.name}: run {busy.run_id[:8]} is {_status(busy)}")
            continue
        earlier = instance.get_runs(  # newest first
            filters=dg.RunsFilter(
                tags={_PARTITION_TAG: item.partition, IDENTITY_TAG: item.identity}
            )
        )
        if earlier and _awaits_retry(earlier[0]):
            decision.waiting.append(f"{item.name}: run {earlier[0].run_id[:8]} is to be retried")
            continue
        failures = 0
        for run in earlier:
            if run.status is dg.DagsterRunStatus.SUCCESS:
                break
            failures += 1
        if failures >= MAX_FAILURES:
            decision.waiting.append(
                f"{item.name}: given up after {failures} failed runs, the last "
                f"{earlier[0].run_id[:8]}; mend the cause and start it by hand"
            )
            continue
        decision.requests.append(
            dg.RunRequest(
                run_key=f"{item.name}:{item.identity}:{len(earlier)}",
                partition_key=item.partition,
                asset_selection=item.keys,
                tags={WORK_TAG: item.job, IDENTITY_TAG: item.identity},
            )
        )
    return decision


def decide_ingest(instance: dg.DagsterInstance, workspace: Workspace, synced: Synced) -> Decision:
    """``decide`` for the stale batches.

    While a recipe is being retrained, a changed batch waits: the training reads its shards. A new
    one is ingested beside it.
    """
    batches = synced.listing.batches
    work = [
        Work("ingest", batch, workspace.fingerprint(batches[batch]), "new or changed")
        for batch in synced.stale
    ]
    held: list[str] = []
    for run in under_way(instance, "retrain")[:1]:
        used = [item for item in work if any(workspace.batch_manifests(item.partition).values())]
        work = [item for item in work if item not in used]
        held = [f"{item.name}: run {run.run_id[:8]} trains on its shards" for item in used]
    decision = decide(instance, work)
    return Decision(decision.requests, decision.waiting + held)


def ingested_since(
    instance: dg.DagsterInstance, workspace: Workspace, batch: str, since: datetime
) -> bool:
    """Whether a batch was ingested after a moment, and all that is wrong with it is its age."""
    if batch_faults(workspace, batch, workspace.batch_manifests(batch))[0]:
        return False
    done = instance.get_runs(
        filters=dg.RunsFilter(
            tags={_PARTITION_TAG: batch},
            statuses=[dg.DagsterRunStatus.SUCCESS],
            updated_after=since,
        )
    )
    return any(_touches(run, "ingest") for run in done)


def under_way(instance: dg.DagsterInstance, job: str) -> list[dg.DagsterRun]:
    """Unfinished runs that make something of a job's assets, whoever started them."""
    return [
        run
        for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))
        if _touches(run, job)
    ]


def in_short(reasons: list[str]) -> str:
    """The first reasons, and how many more there are."""
    more = len(reasons) - _SHOWN
    return "; ".join([*reasons[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _makes(run: dg.DagsterRun, item: Work) -> bool:
    return run.tags.get(_PARTITION_TAG) == item.partition and _touches(run, item.job)


def _touches(run: dg.DagsterRun, job: str) -> bool:
    if not run.asset_selection:  # none, or an empty one where a job was executed whole
        return run.job_name == job
    return bool(run.asset_selection & _KEYS[job])


def _awaits_retry(run: dg.DagsterRun) -> bool:
    return run.tags.get(_WILL_RETRY_TAG) == "true" and _RETRIED_TAG not in run.tags


def _status(run: dg.DagsterRun) -> str:
    return run.status.value.lower().replace("_", " ")
