"""The page of settings has every setting with its default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from datasets.splits import SplitPolicy
from pipelines.cli.app import app
from resources.workspace import resource_of
from stages.workspace import (
    SettingsError,
    Workspace,
    checked_workspace,
    read_workspace,
    workspace_from_environment,
)

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


def test_the_defaults_that_are_written_out_are_those_of_the_code() -> None:
    written = read_workspace(PAGE.parent.parent / "config" / "default.yaml", {})
    assert written.model_dump() == Workspace().model_dump()


def test_other_pages_give_the_same_defaults() -> None:
    text = " ".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    told = re.findall(r"`([\w.]+)`\s+\(default `?([\w.-]+)`?\)", text)
    assert {name for name, _ in told} > {"report.clean_time_alarmed", "splits.test_host"}
    assert len(told) == len(re.findall(r"`\s+\(default", text))
    defaults = flat(Workspace().model_dump(mode="json"))
    assert [each for each in told if yaml.safe_load(each[1]) != defaults[each[0]]] == []


@pytest.mark.parametrize("given", [{}, {"ensemble": {}}, {"ensemble": {"trees": {"n_rounds": 7}}}])
def test_dagster_has_the_defaults_of_the_command_line(given: dict[str, Any]) -> None:
    """Also in a section that is given in part: fingerprints are made of all settings."""
    values = {"models": given}
    assert type(resource_of(Workspace()))(**values).core == checked_workspace(values)


def test_a_day_needs_no_quotes_and_what_yaml_takes_for_no_text_does(tmp_path: Path) -> None:
    def splits(text: str) -> SplitPolicy:
        file = tmp_path / "settings.yaml"
        file.write_text(f"resources: {{workspace: {{config: {{splits: {{{text}}}}}}}}}")
        return read_workspace(file, {}).splits

    assert splits("test_sessions: [2026-11-20]").test_sessions == ["2026-11-20"]
    assert splits("sessions: {autumn: [2026-11-20]}").sessions == {"autumn": ["2026-11-20"]}
    for value in ("off", "12", "1.5"):
        for setting in ("test_host: {}", "test_sessions: [{}]", "sessions: {{{}: [2026-11-20]}}"):
            with pytest.raises(SettingsError, match="quotes"):
                splits(setting.format(value))
            splits(setting.format(f"'{value}'"))


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "settings.yaml"
    paths = {"store": "~/a store", "artifacts": "~/made", "exclusions": "~/list.yaml"}
    file.write_text(yaml.safe_dump({"resources": {"workspace": {"config": paths}}}))
    environ = {"PHASEWATCH_STORE": "~/a store", "PHASEWATCH_ARTIFACTS": "~/made"}
    for workspace in (
        read_workspace(file, {}),
        workspace_from_environment(environ),
        workspace_from_environment({"PHASEWATCH_CONFIG": "~/settings.yaml"}),
    ):
        assert workspace.store_path == tmp_path / "a store"
        assert workspace.artifacts_path == tmp_path / "made"
    words = ["--config=~/settings.yaml", "--json"]
    told = CliRunner().invoke(app, ["report", *words])
    assert f"{tmp_path}/made: no such folder" in told.output
    assert read_workspace(file, {}).exclusions_file == tmp_path / "list.yaml"
