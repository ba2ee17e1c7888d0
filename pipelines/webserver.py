"""Dagster's web server behind our guard: ``phasewatch ui`` starts it in place of Dagster's own.

Takes the options of ``dagster-webserver``. Whatever this process serves, it serves through the
guard, so that nothing depends on how Dagster builds its application. And whatever run or backfill
this process records, by whichever mutation, works on the folders that the server was started with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import uvicorn
from dagster._core.storage.runs import SqlRunStorage
from dagster_webserver.cli import dagster_webserver

from hub.guard import Guard
from pipelines.cli.ui import HOSTS, TOKEN
from pipelines.executors import execution_from_environment
from stages.workspace import MACHINE_SETTINGS, Workspace, workspace_from_environment


def guard_all() -> None:
    """Put every application that uvicorn is given from now on behind the guard."""
    configure = uvicorn.Config.__init__

    def guarded(self: uvicorn.Config, app: Any, *args: Any, **options: Any) -> None:
        hosts = os.environ.get(HOSTS, "").split()
        token = os.environ.get(TOKEN) or None
        behind = Guard(app, hosts=hosts, token=token, graphql="graphql", closed=("report_asset_",))
        configure(self, behind, *args, **options)

    uvicorn.Config.__init__ = guarded  # type: ignore[method-assign]


def keep_to_own_folders(workspace: Workspace, execution: Mapping[str, Any] | None) -> None:
    """Record no run and no backfill from now on whose configuration names what is not ours.

    It is asked where a record is written: every mutation that starts something comes by there.

    Args:
        workspace: what this server was started with.
        execution: how its runs are executed unless they say otherwise.
    """

    def ask_first(name: str) -> None:
        add = getattr(SqlRunStorage, name)

        def checked(self: Any, record: Any, *args: Any) -> Any:
            if foreign := sorted(foreign_settings(record, workspace, execution)):
                raise dg.DagsterInvariantViolationError(
                    "A run that is started in the web server may not set "
                    f"{', '.join(foreign)}: these are as they were when the server was started. "
                    "Leave them out, or start the run on the command line."
                )
            return add(self, record, *args)

        setattr(SqlRunStorage, name, checked)

    for name in ("add_run", "add_historical_run", "add_backfill", "update_backfill"):
        ask_first(name)


def foreign_settings(
    record: Any, workspace: Workspace, execution: Mapping[str, Any] | None
) -> Iterator[str]:
    """What a run or a backfill sets that names a path, a command or where it is executed.

    All is foreign that is not known to be harmless. What is set as the server has it is not.

    Args:
        record: has ``run_config`` and ``tags``.
    """
    yield from (tag for tag in record.tags if tag.startswith("dagster-"))  # of integrations
    for part, section in _items(record.run_config):
        if part == "execution":
            yield from _foreign_execution(section, execution)
        elif part == "resources":
            yield from _foreign_resources(section, workspace)
        elif part == "ops":
            for step, settings in _items(section):
                yield from (
                    f"{part}.{step}.{name}"
                    for name, value in _items(settings)
                    if value and name != "config"  # inputs and outputs may be files
                )
        elif section and part != "loggers":
            yield part


def _foreign_execution(section: Any, own: Mapping[str, Any] | None) -> Iterator[str]:
    for name, config in _items(section):
        if name != "config":
            yield f"execution.{name}"
        elif config and config != own:
            for kind, settings in _items(config):
                if kind != "in_process" and settings != (own or {}).get(kind):
                    yield f"execution.config.{kind}"


def _foreign_resources(section: Any, workspace: Workspace) -> Iterator[str]:
    for resource, given in _items(section):
        for name, config in _items(given):
            where = f"resources.{resource}.{name}"
            if not config:
                continue
            if (resource, name) != ("workspace", "config"):
                yield where
                continue
            yield from (
                f"{where}.{setting}"
                for setting, value in _items(config)
                if setting in MACHINE_SETTINGS and value != getattr(workspace, setting)
            )


def _items(section: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a section; of one that is no section, itself as a part without a name."""
    if isinstance(section, Mapping):
        yield from section.items()
    elif section:
        yield "", section


if __name__ == "__main__":
    guard_all()
    keep_to_own_folders(workspace_from_environment(), execution_from_environment())
    dagster_webserver()
