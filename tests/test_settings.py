"""The page of settings has every setting with its default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from stages.workspace import Workspace

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "settings.md"


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> default; ``splits.sessions`` is one setting."""
    settings: dict[str, Any] = {}
    for name, each in value.items():
        nested = isinstance(each, dict) and each
        settings |= flat(each, f"{prefix}{name}.") if nested else {prefix + name: each}
    return settings


def tabled(text: str) -> dict[str, str]:
    """Dotted name -> default, as the tables have them; a column may be a model."""
    settings: dict[str, str] = {}
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "setting":
            columns = [cell.strip("`") for cell in cells[1:-1]]
        elif cells[0].startswith("`"):
            for column, cell in zip(columns, cells[1:-1], strict=True):
                name = cells[0].strip("`")
                if cell:
                    settings[name if column == "default" else f"models.{column}.{name}"] = cell
    return settings


def test_the_page_has_every_setting_with_its_default() -> None:
    defaults = flat(Workspace().model_dump(mode="json"))
    shown = {
        name: "empty"
        if value == ""
        else f"`{value if isinstance(value, str) else json.dumps(value)}`"
        for name, value in defaults.items()
    }
    text = PAGE.read_text(encoding="utf-8")
    assert tabled(text) == shown
    assert len(shown) > 100
    assert not re.findall(r"\| *\|$", text, re.MULTILINE)  # every one has a meaning


def test_other_pages_give_the_same_defaults() -> None:
    text = " ".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    told = re.findall(r"`([\w.]+)`\s+\(default `?([\w.-]+)`?\)", text)
    assert {name for name, _ in told} > {"report.clean_time_alarmed", "splits.test_host"}
    assert len(told) == len(re.findall(r"`\s+\(default", text))
    defaults = flat(Workspace().model_dump(mode="json"))
    assert [each for each in told if yaml.safe_load(each[1]) != defaults[each[0]]] == []
