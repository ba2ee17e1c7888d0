"""Where steps run: one after the other in the run's own process, or each as a job of a Ray cluster.

A run's configuration chooses (``execution: config: in_process`` or ``ray``), in the way of
Dagster's default executor. Ray itself is imported when a run asks for it.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from config.messages import OPTIONS, variable_of
from config.paths import expanded
from resources.runs import note_process
from stages.workspace import read_configuration

try:
    import dagster_ray
except ModuleNotFoundError:
    ray_executor: Any = None
else:
    ray_executor = dagster_ray.ray_executor

_PATHS = tuple(map(variable_of, OPTIONS))


def build_executor(execution: Mapping[str, Any] | None = None) -> dg.ExecutorDefinition:
    """The executor of every job.

    Args:
        execution: for the runs whose configuration does not choose; in process, if absent.
    """
    kinds = {
        "in_process": dg.in_process_executor.config_schema.as_field(),
        "ray": ray_executor.config_schema.as_field() if ray_executor else dg.Permissive({}),
    }

    @dg.executor(
        name="in_process_or_ray",
        config_schema=dg.Field(
            dg.Selector(kinds), default_value=dict(execution or {"in_process": {}})
        ),
        requirements=lambda chosen: (
            dg.multiple_process_executor_requirements() if "ray" in chosen else []
        ),
    )
    def in_process_or_ray(context: dg.InitExecutorContext) -> dg.Executor:
        ((kind, config),) = dict[str, Any](context.executor_config).items()
        if kind == "ray":
            return _on_ray(context, config)
        return _create(dg.in_process_executor, context, config)

    return in_process_or_ray


def execution_from_environment(environ: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """The ``execution`` section of the file that PHASEWATCH_CONFIG names, None if it has none."""
    path = environ.get("PHASEWATCH_CONFIG")
    document = read_configuration(expanded(path)) if path else {}
    return (document.get("execution") or {}).get("config")


def _create(
    executor: dg.ExecutorDefinition, context: dg.InitExecutorContext, config: Mapping[str, Any]
) -> dg.Executor:
    create = executor.executor_creation_fn
    assert create is not None
    return create(context._replace(executor_config=config))


def _on_ray(context: dg.InitExecutorContext, config: Mapping[str, Any]) -> dg.Executor:
    if ray_executor is None:
        raise dg.DagsterInvariantViolationError(
            "The run is to be executed on Ray, but dagster-ray is not installed: "
            "pip install --constraint constraints.txt --editable '.[ray]'"
        )
    ray = dict(config["ray"])
    ray["env_vars"] = [*_paths(os.environ), *(ray.get("env_vars") or ())]
    return _ProcessNotingExecutor(_create(ray_executor, context, {**config, "ray": ray}))


def _paths(environ: Mapping[str, str]) -> Iterator[str]:
    """``NAME=value`` for a step's environment, whose working directory is another.

    What is not set here must not be set there either, or steps would read and write elsewhere.
    """
    for name in _PATHS:
        value = environ.get(name)
        yield f"{name}={Path(value).absolute() if value else ''}"


class _ProcessNotingExecutor(dg.Executor):
    """Another executor, and a note of the process that waits for its steps.

    Where steps run in this process, the first of them leaves that note.
    """

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> Any:
        return self._executor.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        note_process(plan_context.dagster_run, plan_context.instance)
        yield from self._executor.execute(plan_context, execution_plan)
