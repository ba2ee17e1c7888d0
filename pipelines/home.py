"""Where Dagster keeps its records: an absolute folder with phasewatch's settings in it."""

from __future__ import annotations

import os
from pathlib import Path

import config
from config.paths import base_folder

SETTINGS = Path(config.__file__).with_name("dagster.yaml")


def dagster_home() -> Path:
    """DAGSTER_HOME, or without it ``artifacts/dagster_home``."""
    folder = os.environ.get("DAGSTER_HOME") or base_folder() / "artifacts" / "dagster_home"
    return Path(folder).absolute()


def prepare_dagster_home() -> Path:
    """Make the folder ready and export it."""
    home = dagster_home()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        settings.write_bytes(SETTINGS.read_bytes())
    os.environ["DAGSTER_HOME"] = str(home)
    return home
