"""The one factory: a declared stage becomes an asset with its metadata and its checks.

Whether an artifact is current, and how it is made, is the stage's; nothing is decided here.
"""

import inspect
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
)

from assets.metadata import (
    artifact_metadata,
    as_metadata,
    column_schema,
    layout_metadata,
    table_schema,
)
from assets.partitions import EVERY_PARTITION, FRESH, OWNERS, PARTITIONS, backfill_policy
from config.errors import PhasewatchError
from config.paths import CLONE
from config.progress import Meter
from episodes.environment import MachineError
from features.registry import LAYOUT
from resources.guards import check_instance, check_recorded, refuse
from resources.recording import kept_open
from resources.workspace import WorkspaceResource, config_section
from stages.project import MakeResult, Project
from stages.registry import STAGES
from stages.stage import Check, Stage, StageOutput
from stages.workspace import Workspace

log = logging.getLogger("phasewatch")

_SEVERITY = {"warn": dg.AssetCheckSeverity.WARN, "fail": dg.AssetCheckSeverity.ERROR}


def asset_key(output: str) -> dg.AssetKey:
    return dg.AssetKey(output.split("/"))


def step_of(stage: str) -> str:
    """The name of the step that makes a stage; Dagster allows no slash in it."""
    return stage.replace("/", "__")


def stage_of(step: str | None) -> str:
    """The stage that a step makes, for people."""
    return str(step).replace("__", "/")


def asset_keys(job: str) -> list[dg.AssetKey]:
    """The assets that a job makes."""
    outputs = [o.name for s in STAGES.values() if s.job == job for o in s.outputs]
    return [asset_key(output) for output in outputs]


def build_assets(stages: Iterable[Stage]) -> list[dg.AssetsDefinition]:
    """One definition per stage."""
    return [_build(stage) for stage in stages]


def build_checks(stages: Iterable[Stage]) -> list[dg.AssetChecksDefinition]:
    """The checks that are steps of their own."""
    return [_check(stage, check) for stage in stages for check in stage.checks if check.alone]


def _build(stage: Stage) -> dg.AssetsDefinition:
    own_checks = [check for check in stage.checks if not check.alone]
    partitions = PARTITIONS[stage.partition]
    several = len(stage.outputs) > 1

    @dg.multi_asset(
        # a job must not have the name of one of its steps
        name=f"{stage.name}_{stage.partition or 'store'}"
        if several or stage.name == stage.job
        else step_of(stage.name),
        specs=[_spec(stage, output) for output in stage.outputs],
        check_specs=[
            dg.AssetCheckSpec(
                check.name,
                asset=asset_key(check.output),
                description=check.description,
                blocking=check.blocking,
                partitions_def=partitions,
            )
            for check in own_checks
        ],
        # a step may leave out outputs: of an unavailable recipe, and of many batches, which are
        # recorded by events
        can_subset=several or stage.partition in ("recipe", "batch"),
        pool=stage.pool,
        backfill_policy=backfill_policy(stage),
    )
    def make(
        context: dg.AssetExecutionContext,
        config: config_section(stage.options or _NoOptions),  # type: ignore[valid-type]
        workspace: WorkspaceResource,
    ) -> Iterator[Any]:
        try:
            check_instance(context.instance, workspace.core)
            several_keys = stage.partition == "batch" and len(context.partition_keys) > 1
            made = (_make_range if several_keys else _make)(context, stage, config, workspace.core)
            with kept_open(context.instance):
                yield from made
        except MachineError as error:
            raise dg.Failure(str(error)) from error  # trying again may help
        except PhasewatchError as error:
            refuse(workspace.core.addressed(str(error)), getattr(error, "differences", None))

    return make


@dataclass(frozen=True)
class _NoOptions:
    """A stage without options."""


def _make(
    context: dg.AssetExecutionContext, declared: Stage, config: dg.Config, workspace: Workspace
) -> Iterator[dg.MaterializeResult]:
    key = context.partition_key if declared.partition else ""
    what = f"{declared.name} {key}".strip()
    project, stage = Project(workspace), _with_options(context, declared, config)
    if not project.available(stage, key):
        line = project.status(stage, key).line
        _say(context, f"{line}; skipped, with all that is made from it", ends_step=True)
        return
    check_recorded(context.instance, project, stage, key)
    project.require(stage.needs(project, key))
    made = project.make(
        stage, key, outputs=_selected(context, stage), progress=_meter(context, what)
    )
    reused = made.reused and all(made.artifacts.values())  # nothing to make is not reuse
    outcome = "reused" if reused else stage.summary(project, key, made.artifacts)
    _say(context, f"{what}: {outcome} ({made.seconds:.1f} s)", ends_step=True)
    for output in stage.outputs:
        if output.name in made.artifacts:
            artifact = made.artifacts[output.name]
            yield dg.MaterializeResult(
                asset_key=asset_key(output.name),
                metadata=_metadata(project, stage, output, made),
                data_version=dg.DataVersion(artifact.version) if artifact else None,
                check_results=[
                    _result(check, project, key, artifact)
                    for check in _own_checks(context, stage, output)
                ],
            )


# Long, because what is made and what is recorded of it alternate, batch by batch.
def _make_range(
    context: dg.AssetExecutionContext, declared: Stage, config: dg.Config, workspace: Workspace
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """Make what is due of many batches, each recorded when it is done.

    Dagster takes results and checks of a step for one partition only, so these are events, and a
    step that builds on the outputs is skipped in the same run: it is due afterwards. A batch that
    fails does not keep the others from being made.

    Raises:
        dg.Failure: some batches failed, or a blocking check did.
    """
    project, stage = Project(workspace), _with_options(context, declared, config)
    selected = _selected(context, stage)
    recorded = set.intersection(
        *(context.instance.get_materialized_partitions(asset_key(name)) for name in selected)
    )
    # Dagster keeps the partitions of batches that the store no longer has
    present = [key for key in context.partition_keys if key in project.listing.batches]
    keys = [
        key
        for key in present
        if workspace.force or key not in recorded or not project.status(stage, key).current
    ]
    for key in keys:
        check_recorded(context.instance, project, stage, key)
    _say(context, f"{stage.name}: {len(keys)} of {len(present)} batches to do")
    failures: list[str] = []
    failed = set[str]()
    sizes = [len(project.listing.batches[key]) for key in keys]
    before, of_all = [0, *accumulate(sizes)], sum(sizes)
    meter, place = _meter(context, stage.name), 0

    def progress(done: int, total: int, _text: str) -> None:
        """Of a batch under way, told as episodes of all of them."""
        so_far = before[place] + sizes[place] * done // max(total, 1)
        if so_far < of_all:  # the last line says what became of the run
            meter(so_far, of_all, f"{keys[place]} (batch {place + 1} of {len(keys)})")

    for key, made in project.make_each(stage, keys, outputs=selected, progress=progress):
        place += 1
        if isinstance(made, Exception):
            failures.append(f"{key}: {workspace.addressed(str(made))}")
            failed.add(key)
            continue
        for output in stage.outputs:
            if output.name not in made.artifacts:
                continue
            artifact = made.artifacts[output.name]
            yield dg.AssetMaterialization(
                asset_key(output.name),
                partition=key,
                metadata=_metadata(project, stage, output, made),
                tags=_version_tags(stage, artifact),
            )
            for check in _own_checks(context, stage, output):
                result = _result(check, project, key, artifact)
                yield _evaluation(result, key)
                if check.blocking and not result.passed:
                    failures.append(f"{key}: check {check.name} failed")
                    failed.add(key)
    _say(context, f"{stage.name}: {len(keys) - len(failed)} of {len(keys)} batches done")
    if failures:
        raise dg.Failure("\n".join(failures))


def _with_options(context: dg.AssetExecutionContext, declared: Stage, config: dg.Config) -> Stage:
    if not declared.options:
        return declared
    options = declared.options(**config.model_dump())
    return declared.with_options(options, f"run {context.run.run_id}")


def _selected(context: dg.AssetExecutionContext, stage: Stage) -> set[str]:
    return {o.name for o in stage.outputs if asset_key(o.name) in context.selected_asset_keys}


def _own_checks(
    context: dg.AssetExecutionContext, stage: Stage, output: StageOutput
) -> list[Check]:
    chosen = {(k.asset_key, k.name) for k in context.selected_asset_check_keys}
    return [
        check
        for check in stage.checks
        if check.output == output.name
        and not check.alone
        and (asset_key(output.name), check.name) in chosen
    ]


def _metadata(
    project: Project, stage: Stage, output: StageOutput, made: MakeResult
) -> dict[str, Any]:
    artifact, layout = made.artifacts[output.name], project.workspace.layout
    columns = {} if output.columns else table_schema(artifact, layout)
    return (
        columns
        | artifact_metadata(artifact)
        | {"reused": made.reused, "seconds": made.seconds}
        | layout_metadata(layout, output.input_kind)
        | as_metadata(stage.facts(project, output.name, artifact))
    )


def _version_tags(stage: Stage, artifact: Any) -> dict[str, str]:
    """As Dagster tags a result that states its data version."""
    tags = {CODE_VERSION_TAG: stage.version}
    if artifact:
        tags |= {DATA_VERSION_TAG: artifact.version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
    return tags


def _evaluation(result: dg.AssetCheckResult, key: str) -> dg.AssetCheckEvaluation:
    assert result.asset_key
    assert result.check_name
    return dg.AssetCheckEvaluation(
        asset_key=result.asset_key,
        check_name=result.check_name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
        partition=key,
    )


@cache
def _source_of(stage: type[Stage]) -> dg.LocalFileCodeReference:
    """Cached: to find a class, Python parses its whole file."""
    line = inspect.getsourcelines(stage)[1]
    return dg.LocalFileCodeReference(file_path=inspect.getfile(stage), line_number=line)


@cache
def _columns(output: StageOutput) -> dict[str, Any]:
    """What the asset says of its table, so that its events need not."""
    return column_schema(output.columns(LAYOUT), LAYOUT) if output.columns else {}


def _spec(stage: Stage, output: StageOutput) -> dg.AssetSpec:
    deps: list[Any] = [asset_key(name) for name in output.after]
    if not output.after:
        for name in stage.inputs:
            upstream = STAGES[name]
            across = upstream.partition not in (stage.partition, "")
            mapping = EVERY_PARTITION if across else None
            deps += [
                dg.AssetDep(asset_key(o.name), partition_mapping=mapping) for o in upstream.outputs
            ]
    # an installed copy has no docs
    docs = {"docs": dg.MetadataValue.path(str(CLONE / "docs" / stage.docs))} if CLONE else {}
    return dg.AssetSpec(
        asset_key(output.name),
        description=output.description,
        deps=deps,
        group_name=output.group,
        kinds=set(output.kinds),
        owners=OWNERS,
        code_version=stage.version,
        freshness_policy=FRESH if output.fresh else None,
        partitions_def=PARTITIONS[stage.partition],
        metadata=docs
        | _columns(output)
        | {
            "dagster/code_references": dg.CodeReferencesMetadataValue(
                code_references=[_source_of(type(stage))]
            ),
        },
    )


def _check(stage: Stage, check: Check) -> dg.AssetChecksDefinition:
    """A check that runs without making the artifact."""

    @dg.asset_check(
        asset=asset_key(check.output),
        name=check.name,
        description=check.description,
        blocking=check.blocking,
        partitions_def=PARTITIONS[stage.partition],
    )
    def run(
        context: dg.AssetCheckExecutionContext, workspace: WorkspaceResource
    ) -> dg.AssetCheckResult:
        key = context.partition_key if stage.partition else ""
        project = Project(workspace.core)
        return _result(check, project, key, project.artifacts(stage.name, key)[check.output])

    return run


def _result(check: Check, project: Project, key: str, artifact: Any) -> dg.AssetCheckResult:
    outcome = check.run(project, key, artifact)
    return dg.AssetCheckResult(
        asset_key=asset_key(check.output),
        check_name=check.name,
        passed=outcome.passed,
        severity=_SEVERITY[outcome.severity],
        description=project.workspace.addressed(outcome.description or "") or None,
        metadata=as_metadata(outcome.facts),
    )


def _meter(context: dg.AssetExecutionContext, what: str) -> Meter:
    return Meter(what, partial(_say, context, progress=True))


def _say(
    context: dg.AssetExecutionContext,
    line: str,
    *,
    progress: bool = False,
    last: bool = False,
    ends_step: bool = False,
) -> None:
    """One line to the run's log in the UI and to the terminal."""
    context.log.info(line)
    log.info(line, extra={"progress": progress, "last": last, "ends_step": ends_step})
