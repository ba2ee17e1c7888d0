"""Where Dagster keeps its records: an absolute folder, with phasewatch's settings in it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def prepare_dagster_home() -> Path:
    """Make DAGSTER_HOME (default ``artifacts/dagster_home`` of the clone) ready and export it."""
    home = Path(os.environ.get("DAGSTER_HOME") or ROOT / "artifacts" / "dagster_home").absolute()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        settings.write_bytes((ROOT / "config" / "dagster.yaml").read_bytes())
    os.environ["DAGSTER_HOME"] = str(home)
    return home
