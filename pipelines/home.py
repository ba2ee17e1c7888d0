"""Where Dagster keeps its records: a folder with phasewatch's settings in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

import config
from config.disk import folder_lock
from config.paths import DAGSTER_HOME, unusable_home
from features.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dagster as dg

    from stages.workspace import Workspace

OLD_DAYS = 30
"""Records are deleted after so many days, unless another age is given."""

SETTINGS = Path(config.__file__).with_name("dagster.yaml")


def dagster_home(workspace: Workspace) -> Path:
    """DAGSTER_HOME, or without it the folder in the artifacts folder.

    Raises:
        SettingsError: DAGSTER_HOME is inside another artifacts folder, or cannot be used.
    """
    given = os.environ.get("DAGSTER_HOME")
    home = Path(given or workspace.artifacts_path / DAGSTER_HOME).absolute()
    if problem := unusable_home(home, workspace.artifacts_path):
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
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        from stages.workspace import SettingsError

        raise SettingsError(f"{home}: cannot be made: {error.strerror}") from error
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        with folder_lock(home):
            _make_ready(home)
            instance = dg.DagsterInstance.get()
        with instance:
            yield instance
    finally:
        if before is None:
            del os.environ["DAGSTER_HOME"]
        else:
            os.environ["DAGSTER_HOME"] = before


_RECORDS = ("history", "schedules")
"""Folders of SQLite's files in a home."""


def _make_ready(home: Path) -> None:
    """Put the settings and the empty records in place, each whole or not at all.

    Dagster makes its records in several steps. Two processes that do so at once, or one that is
    killed meanwhile, would leave records that no process can read.
    """
    if not (home / "dagster.yaml").exists():
        write_atomically(home / "dagster.yaml", SETTINGS.read_bytes())
    settings = yaml.safe_load((home / "dagster.yaml").read_text(encoding="utf-8")) or {}
    if "storage" in settings or all((home / name).exists() for name in _RECORDS):
        return
    import dagster as dg

    with tempfile.TemporaryDirectory(dir=home, prefix=f".tmp-{os.getpid()}-") as scratch:
        shutil.copyfile(home / "dagster.yaml", Path(scratch, "dagster.yaml"))
        with dg.DagsterInstance.from_config(scratch):
            pass
        for name in _RECORDS:
            if not (home / name).exists():
                Path(scratch, name).rename(home / name)
