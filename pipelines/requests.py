"""Whether a run for what is due may be requested now.

What is due is the project's answer, by fingerprint; Dagster's records say only which runs are under
way and which have failed.
"""

from dataclasses import dataclass, field
from datetime import datetime

import dagster as dg

from assets.factory import asset_keys
from champion.history import Champion
from pipelines.partitions import Synced
from resources.runs import UNFINISHED
from stages.ingest import TENSORS
from stages.project import Due, Project

MAX_FAILURES = 3
"""After so many failed runs on the same input in a row, only a person starts another."""

WORK_TAG = "phasewatch/work"
IDENTITY_TAG = "phasewatch/identity"
_PARTITION_TAG = "dagster/partition"
_WILL_RETRY_TAG, _RETRIED_TAG = "dagster/will_retry", "dagster/auto_retry_run_id"


@dataclass(frozen=True)
class Decision:
    """Which runs to request, and why the others wait."""

    requests: list[dg.RunRequest] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # under way, or given up: a reason each
    given_up: list[str] = field(default_factory=list)  # of these, what waits for a person


def decide(instance: dg.DagsterInstance, due: list[Due]) -> Decision:
    """Requests for what is due, not under way and has not failed too often.

    A run key is partition, identity and the number of runs there were for that identity: asking
    twice gives one run, and asking again after a failure, or after an artifact was lost, another.
    """
    unfinished = instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))
    decision = Decision()
    for item in due:
        name = f"{item.job} {item.key}".strip()
        busy = next((run for run in unfinished if _makes(run, item)), None)
        if busy is not None:
            decision.waiting.append(f"{name}: run {busy.run_id[:8]} is {_status(busy)}")
            continue
        tags = {IDENTITY_TAG: item.identity} | ({_PARTITION_TAG: item.key} if item.key else {})
        earlier = instance.get_runs(filters=dg.RunsFilter(tags=tags))  # newest first
        if earlier and _awaits_retry(earlier[0]):
            decision.waiting.append(f"{name}: run {earlier[0].run_id[:8]} is to be retried")
            continue
        failures = 0
        for run in earlier:
            if run.status is dg.DagsterRunStatus.SUCCESS:
                break
            failures += 1
        if failures >= MAX_FAILURES:
            decision.given_up.append(
                f"{name}: given up after {failures} failed runs, the last "
                f"{earlier[0].run_id[:8]}; fix the cause and start it by hand"
            )
            decision.waiting.append(decision.given_up[-1])
            continue
        decision.requests.append(
            dg.RunRequest(
                run_key=f"{name}:{item.identity}:{len(earlier)}",
                partition_key=item.key or None,
                asset_selection=asset_keys(item.job) if item.key else _made(item),
                tags={WORK_TAG: item.job, IDENTITY_TAG: item.identity},
            )
        )
    return decision


def decide_ingest(
    instance: dg.DagsterInstance, synced: Synced, due: list[Due] | None = None
) -> Decision:
    """``decide`` for batches, by default all that are due.

    While a recipe is being retrained, a changed batch waits: the training reads its shards. A new
    one is ingested meanwhile.
    """
    due = synced.due if due is None else due
    waiting: list[str] = []
    for run in under_way(instance, "retrain")[:1]:
        used = [d for d in due if any(synced.project.artifacts("ingest", d.key).values())]
        due = [item for item in due if item not in used]
        waiting = [f"ingest {d.key}: run {run.run_id[:8]} trains on its shards" for d in used]
    decision = decide(instance, due)
    return Decision(decision.requests, decision.waiting + waiting, decision.given_up)


def decide_scoring(instance: dg.DagsterInstance, synced: Synced) -> Decision:
    """``decide`` for batches that the champion has not scored, or that changed since.

    Only for those that are ingested and have a window: nothing can come of other runs.
    """
    project = synced.project
    if scoring_champion(project) is None:
        return Decision()
    stage, unready = project.stages["predictions"], set(synced.stale)
    ready = [
        batch
        for batch in project.listing.batches
        if batch not in unready and project.artifacts("ingest", batch)[TENSORS].facts["windows"]
    ]
    due = [
        Due(stage.job, status.key, [status], project.identity(stage.job, status.key))
        for status in project.statuses(stage, ready)
        if status.due
    ]
    return decide(instance, due)


def scoring_champion(project: Project) -> Champion | None:
    """The champion, if it loads and has an alarm rule: without one it cannot score a batch."""
    champion = project.champion
    return champion if champion and champion.served in champion.alarm_rules else None


def ingested_since(instance: dg.DagsterInstance, due: Due, since: datetime) -> bool:
    """Whether a batch was ingested after a moment, and has only gained episodes since."""
    if not all(status.usable for status in due.statuses):
        return False
    done = instance.get_runs(
        filters=dg.RunsFilter(
            tags={_PARTITION_TAG: due.key},
            statuses=[dg.DagsterRunStatus.SUCCESS],
            updated_after=since,
        )
    )
    return any(_touches(run, "ingest") for run in done)


def under_way(instance: dg.DagsterInstance, job: str) -> list[dg.DagsterRun]:
    """Unfinished runs that make something of a job's assets, whoever started them."""
    unfinished = instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))
    return [run for run in unfinished if _touches(run, job)]


def _made(item: Due) -> list[dg.AssetKey]:
    """The assets that are not current: of what exists once for the whole store."""
    return [dg.AssetKey(status.stage.split("/")) for status in item.statuses]


def _makes(run: dg.DagsterRun, item: Due) -> bool:
    return run.tags.get(_PARTITION_TAG, "") == item.key and _touches(run, item.job)


def _touches(run: dg.DagsterRun, job: str) -> bool:
    if not run.asset_selection:  # none, or an empty one where a job was executed whole
        return run.job_name == job
    return bool(run.asset_selection & set(asset_keys(job)))


def _awaits_retry(run: dg.DagsterRun) -> bool:
    return run.tags.get(_WILL_RETRY_TAG) == "true" and _RETRIED_TAG not in run.tags


def _status(run: dg.DagsterRun) -> str:
    return run.status.value.lower().replace("_", " ")
