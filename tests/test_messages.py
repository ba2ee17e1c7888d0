"""Parts that messages share: commands that work when pasted, unknown names, wrong values."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from lab import RECIPE, Lab, failure
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from typer.testing import CliRunner

import phasewatch
from config.messages import OPTIONS, addressed, fault_text, shortened, suggestion, unknown
from hub.events import EVENT
from pipelines.cli.app import OK, app
from stages.status import StageError


@pytest.mark.parametrize(
    ("items", "line"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b, c"), ([*"abcd"], "a, b, and 2 more")],
)
def test_one_more_is_named_and_not_counted(items: list[str], line: str) -> None:
    assert shortened(items, ", ", 2) == line


ADDRESS = {"config": "/c.yaml", "store": "/a store", "artifacts": "/art"}


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        (
            "Run: phasewatch run --batch KEY",
            "Run: phasewatch run --config /c.yaml --store '/a store' --artifacts /art --batch KEY",
        ),
        ("phasewatch validate shows why",
         "phasewatch validate --config /c.yaml --store '/a store' --artifacts /art "
         "shows why"),
        ("phasewatch inspect --verify x", "phasewatch inspect --verify x"),
        ("the phasewatch runner", "the phasewatch runner"),
        ("start one: phasewatch hub --port 1",
         "start one: phasewatch hub --config /c.yaml --artifacts /art --port 1"),
        ("phasewatch produce metrics --once",
         "phasewatch produce metrics --config /c.yaml --store '/a store' --artifacts /art --once"),
        ("Make it: phasewatch bundle --out FOLDER",
         "Make it: phasewatch bundle --config /c.yaml --store '/a store' --artifacts /art --out "
         "FOLDER"),
        (
            "Run: dagster job execute -j score",
            "Run: PHASEWATCH_CONFIG=/c.yaml PHASEWATCH_STORE='/a store' PHASEWATCH_ARTIFACTS=/art "
            "DAGSTER_HOME=/art/dagster_home dagster job execute -j score",
        ),
    ],
)  # fmt: skip
def test_a_command_names_the_project(text: str, complete: str) -> None:
    assert addressed(text, ADDRESS) == complete
    assert addressed(complete, ADDRESS) == complete  # once is enough
    assert addressed(text, {}) == text


def test_every_command_on_episodes_or_artifacts_takes_the_same_options() -> None:
    taken = {}
    for name, command in _commands(typer.main.get_command(app)):
        if found := {each.name for each in command.params} & set(OPTIONS):
            taken[name] = found
    without_store = {name for name, found in taken.items() if found != set(OPTIONS)}
    assert without_store == {"hub", "log verify", "keys new", "keys trust", "simulate"}
    for name, found in taken.items():  # a command that a message names
        told = addressed(f"phasewatch {name}", ADDRESS).split()
        assert {n for n in OPTIONS if f"--{n}" in told} in (set(), found), name


def _commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for each, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{name} {each}".strip())
    if name and not hasattr(command, "commands"):
        yield name, command


def test_a_name_that_is_unknown_is_told_with_the_nearest() -> None:
    assert unknown("recipe", "tme", ("host", "time")) == (
        "recipe must be one of host, time, got 'tme'; did you mean time?"
    )
    many = unknown("batch", "x", [f"lab-{i}" for i in range(20)])
    assert many.endswith("lab-11 or 8 more, got 'x'")


class Section(BaseModel, extra="forbid"):
    value: int


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (Annotated[int, Field(ge=1)], 0, "must be at least 1"),
        (Annotated[float, Field(ge=1)], 0, "must be at least 1"),
        (Annotated[int, Field(le=2**20)], 2**21, "must be at most 1,048,576"),
        (Annotated[float, Field(gt=0.5)], 0.5, "must be above 0.5"),
        (Annotated[float, Field(lt=2)], 3, "must be below 2"),
        (Annotated[int, Field(multiple_of=4)], 6, "must be a multiple of 4"),
        (Annotated[float, Field(allow_inf_nan=False)], math.inf, "must be finite"),
        (Annotated[str, Field(min_length=1)], "", "must not be empty"),
        (Annotated[str, Field(min_length=3)], "a", "must have at least 3 characters"),
        (Annotated[str, Field(max_length=2000)], "a" * 2001, "must have at most 2,000 characters"),
        (Annotated[str, Field(pattern="^a$")], "b", "must be of the form ^a$"),
        (Annotated[list[int], Field(min_length=1)], [], "must not be empty"),
        (Annotated[list[int], Field(min_length=2)], [1], "must have at least 2 entries"),
        (Annotated[list[int], Field(max_length=2)], [1, 2, 3], "must have at most 2 entries"),
        (Literal["a", "b"], "c", "must be 'a' or 'b'"),
        (Section, {}, "is missing"),
        (Section, {"value": 1, "more": 2}, "is not known"),
        (Section, 3, "must be a mapping"),
        (dict[str, int], 3, "must be a mapping"),
        (list[int], 3, "must be a list"),
        (tuple[int, ...], 3, "must be a list"),
        (int, "x", "must be an integer"),
        (int, 1.5, "must be an integer"),
        (float, "x", "must be a number"),
        (bool, "x", "must be true or false"),
        (str, 1, "must be a string"),
        (Annotated[str, Field(max_length=9)], "\ud800", "must be Unicode text"),
        (None, 1, "must be left out"),
        (EVENT, {"type": "phrase"}, "'type' must be one of 'phase', "),
        (EVENT, {}, "must have 'type'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_told_in_our_words(kind: Any, value: Any, says: str) -> None:
    checked = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    with pytest.raises(ValidationError) as refused:
        checked.validate_python(value, strict=True)
    (fault,) = refused.value.errors()
    assert fault_text(fault).startswith(says)
    assert not re.search("[Ii]nput|should|String|Field", fault_text(fault))


def test_few_names_are_meant() -> None:
    names = [f"01M88FJ255KYWFN5AR30GV19{i:02}" for i in range(30)]
    assert suggestion(f"{names[3][:-1]}X", names, n=3).count(names[3][:-2]) == 3
    assert suggestion(names[7][:12], names[7:8], alike=0.9) == f"; did you mean {names[7]}?"
    assert suggestion("01M", names, alike=0.9) == ""  # too short to begin with it
    assert suggestion("x", []) == ""


def test_a_printed_remedy_works_when_it_is_pasted(
    ingested: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line, from Python and from Dagster."""
    for name in ("PHASEWATCH_STORE", "PHASEWATCH_ARTIFACTS", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    batch = next(iter(ingested.project.listing.batches))
    shard = next(ingested.workspace.batch_folder(batch).glob("tensor_shards/*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1])
    options = f"--store {ingested.store.root} --artifacts {ingested.artifacts}"
    paths = shlex.split(options)
    expected = f"phasewatch run {options} --batch {batch}"

    project = phasewatch.open_project(store=ingested.store.root, artifacts=ingested.artifacts)
    with pytest.raises(StageError) as told:
        project.make(project.stages["datasets"], RECIPE)
    assert f"Run: {expected}" in str(told.value)

    monkeypatch.setenv("PHASEWATCH_STORE", str(ingested.store.root))
    monkeypatch.setenv("PHASEWATCH_ARTIFACTS", str(ingested.artifacts))
    from pipelines.graph import build_defs
    from stages.workspace import workspace_from_environment

    definitions = build_defs(workspace=workspace_from_environment())
    result = ingested.execute("retrain", RECIPE, definitions=definitions)
    assert f"Run: {expected}" in failure(result)
    monkeypatch.delenv("PHASEWATCH_STORE")
    monkeypatch.delenv("PHASEWATCH_ARTIFACTS")

    command = shlex.split(expected)
    assert CliRunner().invoke(app, command[1:]).exit_code == OK
    assert ingested.project.status(ingested.project.stages["ingest"], batch, verify=True).current
    told = CliRunner().invoke(app, ["promote", "gbt", *paths])
    assert Path(ingested.artifacts / "checkpoints").exists() is False
    assert "Recipe host: " in told.stdout
