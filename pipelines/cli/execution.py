"""Runs the jobs in this process, or retrains side by side: what ``phasewatch run`` does.

What is current is skipped, and without anything to do Dagster is not started. Where several
recipes are retrained, each worker process takes one at a time; where it is one, this process runs
it and workers train for it.
"""

from __future__ import annotations

import logging
import re
import signal
import uuid
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets.splits import RECIPES
from episodes.environment import collector_paused
from pipelines.cli.console import (
    DAGSTERS_INTERRUPT,
    INTERRUPTED,
    CommandError,
    exit_code_of,
    fail,
    log_to_stderr,
    not_installed,
    note,
    one_of,
)
from pipelines.home import dagster_instance
from stages.ingest import check_corpus_code
from stages.project import Project
from stages.registry import STAGES
from stages.workers import training_ahead, trainings_at_a_time, worker_processes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    import dagster as dg

    from pipelines.partitions import SyncResult
    from stages.workspace import Workspace

log = logging.getLogger("phasewatch")
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class CompletedRun:
    """A run that ended well."""

    job: str  # ingest or retrain
    partition: (
        str  # batch, ``first...last`` batch, or recipe; empty: what exists once for the store
    )
    run_id: str
    made: list[str]  # assets, in the order of the run
    reused: list[str]  # assets found as they would have been made


def run_all(
    workspace: Workspace,
    recipes: list[str] | None,
    *,
    batches: list[str] | None = None,
    ingest_only: bool = False,
) -> list[CompletedRun]:
    """Sync, ingest the stale batches, retrain the stale recipes (of these, None: all).

    After a run that fails none is started, and the error names what was not reached.

    Args:
        batches: of these, ingest the stale ones instead.
    """
    try:
        return _run_all(workspace, recipes, batches, ingest_only=ingest_only)
    except CommandError as error:
        if not (left := error.document.get("not_reached")):
            raise
        words = [f"--recipe {recipe}" for recipe in recipes or ()]
        words += [f"--batch {batch}" for batch in batches or ()]
        words += ["--ingest-only"] if ingest_only and not batches else []
        words += ["--force"] if workspace.force else []
        command = " ".join(["phasewatch run", *words])
        fail(f"{error}\nnot reached: {_by_kind(left)}\nto continue: {command}", **error.document)
    except BaseException as error:
        if exit_code_of(error) == INTERRUPTED:
            note("what is finished is kept; to continue, repeat the command")
        raise


def _run_all(
    workspace: Workspace,
    recipes: list[str] | None,
    batches: list[str] | None,
    *,
    ingest_only: bool,
) -> list[CompletedRun]:
    for recipe in recipes or ():
        one_of("recipe", recipe, RECIPES)
    project = open_project(workspace)
    for batch in batches or ():
        one_of("batch", batch, project.listing.batches)
    if not ingest_only:
        if not project.listing.batches:
            fail(f"{workspace.store_path}: no episodes, so there is nothing to train on")
        check_names(project, recipes or RECIPES)
    ran = []
    asked = list(batches or project.listing.batches)
    ingest = _due(project, "ingest", asked)
    what = f"{len(ingest)} of {len(asked)} not current" if ingest else f"all {len(asked)} current"
    log.info("batches: %s", what)
    if ingest:
        check_corpus_code(workspace)  # before a run says so: here the exit code does, too
        project.check_signing()
        with _leaving([] if ingest_only else [*_runs(recipes or project.recipes), "report"]):
            ran += _ingest(workspace, ingest)
        project = Project(workspace)
        project.due("ingest", verify=True)  # remembers that what was just written is current
    if ingest_only:
        return ran
    wanted = []
    for recipe in recipes or RECIPES:
        if recipe in project.recipes:
            wanted.append(recipe)
            continue
        line = project.status(project.stages["datasets"], recipe).message
        if recipes:
            fail(f"recipe {recipe} {line}")
        log.info("recipe %s %s", recipe, line)
    stale = list(_due(project, "retrain", wanted))
    for recipe in wanted:
        if recipe not in stale:
            log.info("recipe %s is current", recipe)
    if stale:
        project.check_signing()
        with _leaving(["report"]):
            ran += _retrain(workspace, stale)
        project = Project(workspace)
    page = [due for due in project.due("retrain", verify=True) if not due.key]
    if page:
        outputs = [status.stage for status in page[0].statuses]
        ran += _retrain(workspace, [""], outputs)
    return ran


def _runs(recipes: Collection[str]) -> list[str]:
    return [f"retrain {recipe}" for recipe in recipes]


@contextmanager
def _leaving(later: list[str]) -> Iterator[None]:
    """Within, a run that fails leaves these, too."""
    try:
        yield
    except CommandError as error:
        error.document.setdefault("not_reached", []).extend(later)
        raise


def _by_kind(names: list[str]) -> str:
    """The names, those of one kind of stage counted: ``eval_reports (16)``."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.partition("/")[0], []).append(name)
    return ", ".join(
        f"{kind} ({len(group)})" if len(group) > 1 else group[0] for kind, group in kinds.items()
    )


def check_names(project: Project, recipes: Collection[str]) -> None:
    """Refuse at once the names that a recipe would refuse after minutes of work.

    Raises:
        CommandError: the store has no such host or session.
    """
    splits, episodes = project.workspace.splits, project.listing.episodes
    hosts = sorted({episode.host_id for episode in episodes})
    if "host" in recipes and len(hosts) > 1:  # with one, the recipe is unavailable
        one_of("splits.test_host", splits.test_host, hosts)
    if "session" in recipes and splits.test_sessions:
        sessions = sorted({splits.session(episode.episode_id) for episode in episodes})
        for session in splits.test_sessions:
            one_of("splits.test_sessions", session, sessions)


def _due(project: Project, job: str, wanted: Iterable[str]) -> dict[str, frozenset[str]]:
    """The keys among those wanted that a job would change, each with the stages that are not
    current; under ``force`` all of them, and no stage is named.
    """
    if project.workspace.force:
        return dict.fromkeys(wanted, frozenset())
    stale = {
        item.key: frozenset(status.stage for status in item.statuses)
        for item in project.due(job, verify=True)
    }
    return {key: stale[key] for key in wanted if key in stale}


def open_project(workspace: Workspace) -> Project:
    """The project, its store listed; differences between index and files are logged."""
    project = Project(workspace)
    differences = project.listing.differences
    for difference in differences[:5]:
        log.warning("store: %s", difference)
    if len(differences) > 5:
        command = workspace.addressed("phasewatch validate")
        log.warning("store: and %d more; see %s", len(differences) - 5, command)
    return project


def sync_only(workspace: Workspace) -> SyncResult:
    """Register the store's batches with Dagster, and end runs whose process is gone."""
    from pipelines.partitions import sync_batches

    with collector_paused():
        open_project(workspace)
        with dagster_instance(workspace) as instance:
            return sync_batches(instance, workspace)


def _ingest(workspace: Workspace, due: Mapping[str, frozenset[str]]) -> list[CompletedRun]:
    """Ingest batches, many in a run; then make what is made of their shards.

    Args:
        due: the batches, each with the stages that are not current; if none is named, all run.
    """
    from assets.partitions import BATCHES_PER_RUN
    from pipelines.graph import build_defs
    from pipelines.partitions import partition_label, partition_ranges, sync_batches

    with dagster_instance(workspace) as instance:
        project = sync_batches(instance, workspace).project
        definitions = build_defs(workspace=workspace)
        stages = [s for s in project.stages.values() if s.job == "ingest" and not s.idle(project)]
        batches, names = list(due), frozenset[str]().union(*due.values())
        if names and "ingest" not in names:  # what is made of the shards alone
            stages = [stage for stage in stages if stage.name in names]
        outputs = {stage.name: [output.name for output in stage.outputs] for stage in stages}
        if len(batches) == 1:  # Dagster makes one of the other in one run
            name = "ingest" if "ingest" in outputs else " and ".join(outputs)
            steps = [(name, batches, [name for made in outputs.values() for name in made])]
        else:
            ranges = partition_ranges(instance, batches, BATCHES_PER_RUN, exact=workspace.force)
            steps = [(name, keys, made) for name, made in outputs.items() for keys in ranges]
        ran = []
        for i, (name, keys, made) in enumerate(steps, start=1):
            log.info("%s %s (%d of %d)", name, partition_label(keys), i, len(steps))
            later = [f"{name} {partition_label(keys)}" for name, keys, _ in steps[i:]]
            with _leaving(later):
                ran.append(_execute(workspace, definitions, "ingest", keys, instance, made))
        return ran


def _retrain(
    workspace: Workspace, recipes: list[str], outputs: list[str] | None = None
) -> list[CompletedRun]:
    """Retrain recipes; or, for the one empty name, make outputs of the whole store."""
    from pipelines.graph import build_defs
    from pipelines.partitions import sync_batches

    slots = 1 if outputs else trainings_at_a_time(workspace)
    with dagster_instance(workspace) as instance:
        sync_batches(instance, workspace)
        runs = min(slots, len(recipes), _places(instance))
        if runs > 1:
            return _side_by_side(workspace, recipes, runs)
        definitions = build_defs(workspace=workspace)
        ran = []
        with training_ahead(workspace, slots, log_to_stderr):
            for i, recipe in enumerate(recipes, start=1):
                what = f"retrain {recipe}" if recipe else "report"
                log.info("%s (%d of %d)", what, i, len(recipes))
                keys = [recipe] if recipe else []
                with _leaving(_runs(recipes[i:])):
                    ran.append(_execute(workspace, definitions, "retrain", keys, instance, outputs))
        return ran


def _places(instance: dg.DagsterInstance) -> int:
    """Runs that may train at once: one that waits for a place would keep a core busy."""
    limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    return limits.get("training", instance.global_op_concurrency_default_limit or 1)


def _side_by_side(workspace: Workspace, recipes: list[str], runs: int) -> list[CompletedRun]:
    """After a run that fails none is started; those under way end."""
    waiting, running, ran = list(recipes), set[Any](), list[CompletedRun]()
    failures: list[CommandError] = []
    with worker_processes(runs, _prepare, workspace) as pool:
        while running or (waiting and not failures):
            while waiting and not failures and len(running) < runs:
                log.info("retrain %s", waiting[0])
                running.add(pool.submit(_retrain_in_worker, waiting.pop(0)))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    ran.append(future.result())
                except CommandError as error:
                    failures.append(error)
    if failures:
        left = [name for error in failures for name in error.document["not_reached"]]
        fail("\n".join(map(str, failures)), not_reached=[*left, *_runs(waiting)])
    return sorted(ran, key=lambda one: recipes.index(one.partition))


_in_worker: dict[str, Any] = {}
"""A worker's workspace, definitions and instance: made once, for all its runs."""


def _prepare(workspace: Workspace) -> None:
    from pipelines.graph import build_defs

    log_to_stderr()
    instance = ExitStack().enter_context(dagster_instance(workspace))
    _in_worker.update(
        workspace=workspace, definitions=build_defs(workspace=workspace), instance=instance
    )


def _retrain_in_worker(recipe: str) -> CompletedRun:
    return _execute(**_in_worker, job="retrain", keys=[recipe], outputs=None)


def _execute(
    workspace: Workspace,
    definitions: dg.Definitions,
    job: str,
    keys: list[str],
    instance: dg.DagsterInstance,
    outputs: list[str] | None,
) -> CompletedRun:
    from assets.factory import asset_key, stage_of
    from pipelines.notifications import notify_of_run
    from pipelines.partitions import partition_label, partition_tags
    from resources.recording import kept_open
    from resources.runs import process_tag

    key, run_id = partition_label(keys), str(uuid.uuid4())
    steps = [
        stage
        for stage in STAGES.values()
        if stage.job == job and (not outputs or any(o.name in outputs for o in stage.outputs))
    ]
    with _output_shown_until_the_end(), _steps_counted(len(steps)), kept_open(instance):
        result = definitions.resolve_job_def(job).execute_in_process(
            run_config=_QUIET,
            instance=instance,
            run_id=run_id,
            tags=partition_tags(keys) | process_tag(run_id),
            asset_selection=[asset_key(output) for output in outputs] if outputs else None,
            raise_on_error=False,
        )
    notify_of_run(instance, workspace, result.run_id)
    if not result.success:
        ends = [event.job_failure_data.error for event in result.all_events if event.is_job_failure]
        if any(error is not None and error.cls_name == DAGSTERS_INTERRUPT for error in ends):
            raise KeyboardInterrupt
        failures = [
            f"{stage_of(event.step_key)}: {_reason(event.step_failure_data)}"
            for event in result.get_step_failure_events()
        ]
        fail(
            f"{job} {key} failed (run {result.run_id[:8]})\n"
            + "\n".join(failures or ["see the run in the UI"]),
            not_reached=_not_reached(result, instance, key),
        )
    made: dict[bool, dict[str, None]] = {False: {}, True: {}}
    for event in result.get_asset_materialization_events():
        reused = event.materialization.metadata.get("reused")
        made[bool(reused and reused.value)][event.materialization.asset_key.to_user_string()] = None
    return CompletedRun(job, key, result.run_id, list(made[False]), list(made[True]))


def _not_reached(
    result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance, key: str
) -> list[str]:
    """The assets whose steps a run did not start."""
    import dagster as dg

    started = {event.step_key for event in result.all_events if event.is_step_start}
    planned = instance.all_logs(
        result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    )
    events = [entry.dagster_event for entry in planned if entry.dagster_event]
    left = [event for event in events if event.step_key not in started]
    return [f"{e.asset_key.to_user_string()} {key}".strip() for e in left if e.asset_key]


@contextmanager
def _steps_counted(total: int) -> Iterator[None]:
    """Append to the last line of each step how many of the run's steps have ended."""
    ended = 0

    def count(record: logging.LogRecord) -> bool:
        nonlocal ended
        if getattr(record, "ends_step", False):
            ended += 1
            if total > 1:
                record.msg = f"{record.msg}, step {ended} of {total}"
        return True

    log.addFilter(count)
    try:
        yield
    finally:
        log.removeFilter(count)


@contextmanager
def _output_shown_until_the_end() -> Iterator[None]:
    """Keep Ctrl-C from the processes with which Dagster shows the output of a step.

    A terminal sends it to all processes. These would end at once, one with a stack trace.
    """
    from dagster._core.execution import compute_logs

    from resources.recording import replaced

    start = compute_logs.execute_posix_tail

    @contextmanager
    def deaf(*given: Any) -> Iterator[Any]:
        with ExitStack() as stack:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited
            try:
                processes = stack.enter_context(start(*given))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield processes

    with replaced(compute_logs, "execute_posix_tail", deaf):
        yield


def _reason(failure: Any) -> str:
    """Why a step failed, with the remedy where a library is missing."""
    from resources.runs import why_failed

    message = why_failed(failure)
    missing = re.fullmatch(r"ModuleNotFoundError: No module named '(.+)'", message)
    return not_installed(missing[1]) if missing else message
