"""Where files go: the clone, or the folder in which an installed copy is used."""

from __future__ import annotations

from pathlib import Path

_ABOVE = Path(__file__).resolve().parent.parent
CLONE: Path | None = _ABOVE if (_ABOVE / "workspace.yaml").is_file() else None


def base_folder() -> Path:
    """Where relative paths start: the clone, or without one the current directory."""
    return CLONE or Path.cwd()
