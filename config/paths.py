"""Where files go: in a clone inside it, otherwise where the user works or the platform says.

Nothing of ours is imported here, so that everything can import this.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
CLONE = _ROOT if all((_ROOT / n).is_file() for n in ("workspace.yaml", "pyproject.toml")) else None
"""The clone that this code runs from; None for an installed copy."""


def base_folder() -> Path:
    """Where relative paths start: the clone, or the current directory."""
    return CLONE or Path.cwd()


def expanded(path: str | Path) -> Path:
    """A path that a person gave, with the home folder for ``~``: not every shell replaces it."""
    with suppress(RuntimeError):  # no such user
        return Path(path).expanduser()
    return Path(path)


def cache_folder() -> Path:
    """Where caches go: the clone's artifacts, or the user's cache folder for phasewatch.

    Where nothing can be written there, a folder for temporary files that only this user can write:
    what others can write is not read, because a cache has machine code in it.
    """
    places = [CLONE / "artifacts" / "cache"] if CLONE else []
    with suppress(RuntimeError):  # this user has no home
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        places.append(Path(home) / "phasewatch")
    places.append(Path(tempfile.gettempdir()) / f"phasewatch-{os.geteuid()}")
    for place in places:
        with suppress(OSError):
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            state = place.stat()
            ours = state.st_uid == os.geteuid() and not state.st_mode & stat.S_IWOTH
            if os.access(place, os.W_OK | os.X_OK) and (ours or place != places[-1]):
                return place
    return Path(tempfile.mkdtemp(prefix="phasewatch-"))


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists.

    ``Path.exists`` raises where a folder on the way cannot be entered; this goes on above it.
    """
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.access(place, os.F_OK))


DAGSTER_HOME = "dagster_home"  # in the artifacts folder
_LEADS_ELSEWHERE = re.compile(r"[%?\x00-\x1f\x7f\ud800-\udfff]")  # Dagster puts paths into URLs


def unusable_home(home: Path, artifacts: Path) -> str | None:
    """Why a Dagster home cannot keep the history of an artifacts folder; None if it can.

    A home inside an artifacts folder has the history of that folder; elsewhere it is anyone's.
    """
    if found := _LEADS_ELSEWHERE.search(str(home)):
        return (
            f"DAGSTER_HOME must have none of %, ? and control characters in its path, got "
            f"{found[0]!r} in {str(home)!r}: Dagster's records would be in another folder. Set "
            "DAGSTER_HOME to another folder"
        )
    there = nearest_existing(home)
    if not os.access(there, os.W_OK):
        inside = home.is_relative_to(artifacts.absolute())
        elsewhere = "To write elsewhere, add --artifacts FOLDER. To read this one, run: "
        return (
            f"{there}: cannot be written, and Dagster writes even where it only reads. "
            f"{elsewhere if inside else 'Run: '}"
            "export DAGSTER_HOME=FOLDER (one that can be written)"
        )
    home, artifacts = home.resolve(), artifacts.resolve()
    if home.name != DAGSTER_HOME or home.parent == artifacts:
        return None
    return (
        f"DAGSTER_HOME must be {artifacts / DAGSTER_HOME} for this artifacts folder, got {home}, "
        "which holds the records of another artifacts folder. Run: unset DAGSTER_HOME "
        f"(for Dagster's own commands: export DAGSTER_HOME={artifacts / DAGSTER_HOME})"
    )
