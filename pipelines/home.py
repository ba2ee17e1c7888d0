"""Where Dagster keeps its records: an absolute folder, with phasewatch's settings in it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def dagster_home() -> Path:
    """DAGSTER_HOME, or without it ``artifacts/dagster_home`` of the clone."""
    return Path(os.environ.get("DAGSTER_HOME") or ROOT / "artifacts" / "dagster_home").absolute()


def prepare_dagster_home() -> Path:
    """Make the folder ready and export it."""
    home = dagster_home()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        settings.write_bytes((ROOT / "config" / "dagster.yaml").read_bytes())
    os.environ["DAGSTER_HOME"] = str(home)
    return home
