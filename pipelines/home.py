"""Where Dagster keeps its records: a folder with phasewatch's settings in it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import config
from config.paths import DAGSTER_HOME, foreign_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dagster as dg

    from stages.workspace import Workspace

SETTINGS = Path(config.__file__).with_name("dagster.yaml")


def dagster_home(workspace: Workspace) -> Path:
    """DAGSTER_HOME, or without it the folder in the artifacts folder.

    Raises:
        SettingsError: DAGSTER_HOME is inside another artifacts folder.
    """
    given = os.environ.get("DAGSTER_HOME")
    home = Path(given or workspace.artifacts_path / DAGSTER_HOME).absolute()
    if problem := foreign_home(home, workspace.artifacts_path):
        from stages.workspace import SettingsError

        raise SettingsError(problem)
    return home


@contextmanager
def dagster_instance(workspace: Workspace) -> Iterator[dg.DagsterInstance]:
    """The instance of a workspace, its folder ready; DAGSTER_HOME names it meanwhile.

    Raises:
        SettingsError: see ``dagster_home``.
    """
    import dagster as dg

    home = dagster_home(workspace)
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        settings.write_bytes(SETTINGS.read_bytes())
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    finally:
        if before is None:
            del os.environ["DAGSTER_HOME"]
        else:
            os.environ["DAGSTER_HOME"] = before
