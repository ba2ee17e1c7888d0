"""Where files go: in a clone inside it, otherwise where the user works or the platform says.

Nothing of ours is imported here, so that everything can import this.
"""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
CLONE = _ROOT if all((_ROOT / n).is_file() for n in ("workspace.yaml", "pyproject.toml")) else None
"""The clone that this code runs from; None for an installed copy."""


def base_folder() -> Path:
    """Where relative paths start: the clone, or the current directory."""
    return CLONE or Path.cwd()


def cache_folder() -> Path:
    """Where caches go: the clone's artifacts, or the user's cache folder for phasewatch."""
    if CLONE:
        return CLONE / "artifacts" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phasewatch"


DAGSTER_HOME = "dagster_home"  # in the artifacts folder


def foreign_home(home: Path, artifacts: Path) -> str | None:
    """Why a Dagster home cannot keep the history of an artifacts folder; None if it can.

    A home inside an artifacts folder has the history of that folder; elsewhere it is anyone's.
    """
    home, artifacts = home.resolve(), artifacts.resolve()
    if home.name != DAGSTER_HOME or home.parent == artifacts:
        return None
    return (
        f"DAGSTER_HOME must be {artifacts / DAGSTER_HOME} for this artifacts folder, got {home}, "
        "which has the history of another one. Run: unset DAGSTER_HOME "
        f"(for Dagster's own commands: export DAGSTER_HOME={artifacts / DAGSTER_HOME})"
    )
