"""The one factory: a declared stage becomes an asset with its metadata and its checks.

Whether an artifact is current, and how it is made, is the stage's; nothing is decided here.
"""

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets.metadata import artifact_metadata, as_metadata, layout_metadata, table_schema
from assets.partitions import EVERY_PARTITION, FRESH, OWNERS, PARTITIONS
from champion.history import ChampionError
from config.paths import CLONE
from episodes.environment import MachineError
from episodes.store import StoreError
from models.checkpoint import CheckpointError
from resources.guards import check_instance, check_recorded, refuse
from resources.workspace import WorkspaceResource, config_section
from stages.project import Project
from stages.registry import STAGES
from stages.stage import Check, Output, Stage
from stages.status import StageError

log = logging.getLogger("phasewatch")

_EVERY_S = 2.0
_SEVERITY = {"warn": dg.AssetCheckSeverity.WARN, "fail": dg.AssetCheckSeverity.ERROR}


def asset_key(output: str) -> dg.AssetKey:
    return dg.AssetKey(output.split("/"))


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
        else stage.name.replace("/", "__"),
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
        # a step that may leave out outputs: what the store cannot give is skipped
        can_subset=several or stage.partition == "recipe",
        pool=stage.pool,
    )
    def make(
        context: dg.AssetExecutionContext,
        config: config_section(stage.options or _NoOptions),  # type: ignore[valid-type]
        workspace: WorkspaceResource,
    ) -> Iterator[dg.MaterializeResult]:
        yield from _make(context, stage, config, workspace.core)

    return make


@dataclass(frozen=True)
class _NoOptions:
    """A stage without options."""


def _make(
    context: dg.AssetExecutionContext, declared: Stage, config: dg.Config, workspace: Any
) -> Iterator[dg.MaterializeResult]:
    check_instance(context.instance, workspace)
    key = context.partition_key if declared.partition else ""
    selected = {
        o.name for o in declared.outputs if asset_key(o.name) in context.selected_asset_keys
    }
    what = f"{declared.name} {key}".strip()
    try:
        project = Project(workspace)
        stage = declared
        if declared.options:
            options = declared.options(**config.model_dump())
            stage = declared.with_options(options, f"run {context.run.run_id}")
        if not project.available(stage, key):
            line = project.status(stage, key).line
            _say(context, f"{line}; skipped, with all that is made from it")
            return
        check_recorded(context.instance, project, stage, key)
        project.require(stage.needs(project, key))
        made = project.make(stage, key, outputs=selected, progress=_reporter(context, what))
    except (StageError, CheckpointError, ChampionError, StoreError) as error:
        refuse(workspace.addressed(str(error)), getattr(error, "differences", None))
    except MachineError as error:
        raise dg.Failure(str(error)) from error  # trying again may help
    reused = made.reused and all(made.artifacts.values())  # nothing to make is not reuse
    outcome = "reused" if reused else stage.summary(project, key, made.artifacts)
    _say(context, f"{what}: {outcome} ({made.seconds:.1f} s)")
    layout = workspace.layout
    for output in stage.outputs:
        if output.name not in made.artifacts:
            continue
        artifact = made.artifacts[output.name]
        metadata = (
            table_schema(artifact, layout)
            | artifact_metadata(artifact)
            | {"reused": made.reused, "seconds": made.seconds}
            | layout_metadata(layout, output.input_kind)
            | as_metadata(stage.facts(project, output.name, artifact))
        )
        yield dg.MaterializeResult(
            asset_key=asset_key(output.name),
            metadata=metadata,
            data_version=dg.DataVersion(artifact.version) if artifact else None,
            check_results=[
                _result(check, project, key, artifact)
                for check in stage.checks
                if check.output == output.name
                and not check.alone
                and (asset_key(output.name), check.name)
                in {(k.asset_key, k.name) for k in context.selected_asset_check_keys}
            ],
        )


def _spec(stage: Stage, output: Output) -> dg.AssetSpec:
    source = Path(inspect.getfile(type(stage)))
    line = inspect.getsourcelines(type(stage))[1]
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
        | {
            "dagster/code_references": dg.CodeReferencesMetadataValue(
                code_references=[dg.LocalFileCodeReference(file_path=str(source), line_number=line)]
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


def _reporter(context: dg.AssetExecutionContext, what: str) -> Callable[[int, int, str], None]:
    """A progress callback: a line at once, then at most one every two seconds, and the last."""
    last = [0.0]

    def report(done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if done < total and now - last[0] < _EVERY_S:
            return
        last[0] = now
        _say(context, f"{what}: {done}/{total} {text}", progress=True)

    return report


def _say(context: dg.AssetExecutionContext, line: str, *, progress: bool = False) -> None:
    """One line to the run's log in the UI and to the terminal."""
    context.log.info(line)
    log.info(line, extra={"progress": progress})
