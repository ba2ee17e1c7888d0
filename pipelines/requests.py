"""Whether a run for what is due may be requested now.

What is due is the project's answer, by fingerprint; Dagster's records say only which runs are under
way and which have failed.
"""

from dataclasses import dataclass, field
from datetime import datetime

import dagster as dg

from assets.factory import asset_key, asset_keys
from assets.partitions import BATCHES_PER_RUN
from champion.history import ChampionEntry
from features.files import fingerprint
from pipelines.partitions import (
    RunCoverage,
    SyncResult,
    partition_label,
    partition_ranges,
    partition_tags,
)
from resources.records import IDENTITY_TAG
from resources.runs import UNFINISHED, WILL_RETRY_TAG
from stages.batch import TENSORS
from stages.project import DueWork, Project

SINGLE_RUNS = 8
"""More batches than that are ingested or scored by one run; the others wait for it to end."""

MAX_FAILURES = 3
"""After so many failed runs on the same input in a row, only a person starts another."""

WORK_TAG = "phasewatch/work"
_RETRIED_TAG = "dagster/auto_retry_run_id"


@dataclass(frozen=True)
class RunDecision:
    """Which runs to request, and why the others wait."""

    requests: list[dg.RunRequest] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # under way, or given up: a reason each
    given_up: list[str] = field(default_factory=list)  # of these, what waits for a person


def decide(instance: dg.DagsterInstance, project: Project, due: list[DueWork]) -> RunDecision:
    """Requests for what is due, not under way and has not failed too often.

    A run key is partition, identity and the number of runs there were for that identity: asking
    twice gives one run, and asking again after a failure, or after an artifact was lost, another.
    """
    unfinished = instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))
    coverage, decision = RunCoverage(instance), RunDecision()
    touching = {
        job: [run for run in unfinished if _touches(run, job)]
        for job in dict.fromkeys(item.job for item in due)
    }
    free: list[list[DueWork]] = []
    for item in due:
        busy = next((run for run in touching[item.job] if coverage.includes(run, item.key)), None)
        if busy is not None:
            status = busy.status.value.lower().replace("_", " ")
            decision.waiting.append(f"{_name([item])}: run {busy.run_id[:8]} is {status}")
        else:
            free.append([item])
    if len(free) > SINGLE_RUNS and all(item.key for (item,) in free):
        by_key = {item.key: item for (item,) in free}
        first, *rest = partition_ranges(instance, by_key, BATCHES_PER_RUN)
        later = sum(map(len, rest))
        if later:
            batches = "batch waits" if later == 1 else "batches wait"
            decision.waiting.append(
                f"{later} more {batches} for the run whose range ends at {first[-1]}"
            )
        free = [[by_key[key] for key in first]]
    for items in free:
        _decide(instance, project, items, decision)
    return decision


def _decide(
    instance: dg.DagsterInstance, project: Project, items: list[DueWork], decision: RunDecision
) -> None:
    """Request one run for these, or say why not."""
    job, keys, name = items[0].job, [item.key for item in items if item.key], _name(items)
    identity = items[0].identity if len(items) == 1 else fingerprint([i.identity for i in items])
    tags = partition_tags(keys)
    # newest first
    earlier = instance.get_runs(filters=dg.RunsFilter(tags={IDENTITY_TAG: identity} | tags))
    tags_of_last = earlier[0].tags if earlier else {}
    if tags_of_last.get(WILL_RETRY_TAG) == "true" and _RETRIED_TAG not in tags_of_last:
        decision.waiting.append(f"{name}: run {earlier[0].run_id[:8]} is to be retried")
        return
    failures = 0
    for run in earlier:
        if run.status is dg.DagsterRunStatus.SUCCESS:
            break
        failures += 1
    if failures >= MAX_FAILURES:
        decision.given_up.append(
            f"{name}: gave up after {failures} failed runs, the last "
            f"{earlier[0].run_id[:8]}; fix the cause and start it by hand"
        )
        decision.waiting.append(decision.given_up[-1])
        return
    several = len(keys) > 1
    decision.requests.append(
        dg.RunRequest(
            run_key=f"{name}:{identity}:{len(earlier)}",
            partition_key=None if several else (keys[0] if keys else None),
            asset_selection=_wanted(project, items),
            tags={WORK_TAG: job, IDENTITY_TAG: identity} | (tags if several else {}),
        )
    )


def _name(items: list[DueWork]) -> str:
    keys = [item.key for item in items]
    return f"{items[0].job} {partition_label(keys)}".strip()


def _wanted(project: Project, items: list[DueWork]) -> list[dg.AssetKey]:
    """The assets to make: of what exists once for the whole store, those that are not current.

    Of many batches only what needs nothing else of them: the rest is due after that run.
    """
    if not items[0].key:
        return [asset_key(status.stage) for status in items[0].statuses]
    stages = [s for s in project.stages.values() if s.job == items[0].job and not s.idle(project)]
    if len(items) > 1:
        names = {status.stage for item in items for status in item.statuses}
        stages = [next(stage for stage in stages if stage.name in names)]
    return [asset_key(output.name) for stage in stages for output in stage.outputs]


def decide_ingest(
    instance: dg.DagsterInstance, synced: SyncResult, due: list[DueWork] | None = None
) -> RunDecision:
    """``decide`` for batches, by default all that are due.

    While a recipe is being retrained, a changed batch waits: the training reads its shards. A new
    one is ingested meanwhile.
    """
    due = synced.due if due is None else due
    waiting: list[str] = []
    if training := under_way(instance, "retrain"):
        run_id = training[0].run_id[:8]
        in_use = {d.key for d in due if any(synced.project.artifacts("ingest", d.key).values())}
        waiting = [
            f"ingest {d.key}: run {run_id} trains on its shards" for d in due if d.key in in_use
        ]
        due = [item for item in due if item.key not in in_use]
    decision = decide(instance, synced.project, due)
    return RunDecision(decision.requests, decision.waiting + waiting, decision.given_up)


def decide_scoring(instance: dg.DagsterInstance, synced: SyncResult) -> RunDecision:
    """``decide`` for batches that the champion has not scored, or that changed since.

    Only for those that are ingested and have a window: nothing can come of other runs.
    """
    project = synced.project
    if project.champion_fault:
        return RunDecision(waiting=[f"nothing is scored: {project.champion_fault}"])
    if scoring_champion(project) is None:
        return RunDecision()
    stage, unready = project.stages["predictions"], set(synced.stale)
    ready = [
        batch
        for batch in project.listing.batches
        if batch not in unready and project.artifacts("ingest", batch)[TENSORS].facts["windows"]
    ]
    due = [
        DueWork(stage.job, status.key, [status], project.identity(stage.job, status.key))
        for status in project.statuses(stage, ready)
        if status.due
    ]
    return decide(instance, project, due)


def scoring_champion(project: Project) -> ChampionEntry | None:
    """The champion, if it loads and has an alarm rule: without one it cannot score a batch."""
    champion = project.champion
    return champion if champion and champion.served in champion.alarm_rules else None


def ingested_since(
    instance: dg.DagsterInstance, due: list[DueWork], since: datetime
) -> list[DueWork]:
    """The batches that were ingested after a moment and have only gained episodes since."""
    done = instance.get_runs(
        filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS], updated_after=since)
    )
    ingests, coverage = [run for run in done if _touches(run, "ingest")], RunCoverage(instance)
    return [
        item
        for item in due
        if all(status.usable for status in item.statuses)
        and any(coverage.includes(run, item.key) for run in ingests)
    ]


def under_way(instance: dg.DagsterInstance, job: str) -> list[dg.DagsterRun]:
    """Unfinished runs that make something of a job's assets, whoever started them."""
    unfinished = instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))
    return [run for run in unfinished if _touches(run, job)]


def _touches(run: dg.DagsterRun, job: str) -> bool:
    if not run.asset_selection:  # none, or an empty one where a job was executed whole
        return run.job_name == job
    return bool(run.asset_selection & set(asset_keys(job)))
