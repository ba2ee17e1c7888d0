"""Parts that messages share: commands that work when pasted, and unknown names."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from lab import RECIPE, Lab, failure
from typer.testing import CliRunner

import phasewatch
from config.messages import addressed, meant, unknown
from pipelines.cli.app import OK, app
from stages.status import StageError

ADDRESS = {"config": "/c.yaml", "store": "/a store", "artifacts": "/art"}


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        (
            "Run: phasewatch run --batch KEY",
            "Run: phasewatch run --config /c.yaml --store '/a store' --artifacts /art --batch KEY",
        ),
        ("phasewatch validate shows why",
         "phasewatch validate --config /c.yaml --store '/a store' shows why"),
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


def test_a_name_that_is_unknown_is_told_with_the_nearest() -> None:
    assert unknown("recipe", "tme", ("host", "time")) == (
        "recipe must be one of host, time, got 'tme'; did you mean time?"
    )
    many = unknown("batch", "x", [f"lab-{i}" for i in range(20)])
    assert many.endswith("lab-11 or 8 more, got 'x'")


def test_few_names_are_meant() -> None:
    names = [f"01M88FJ255KYWFN5AR30GV19{i:02}" for i in range(30)]
    assert meant(f"{names[3][:-1]}X", names, n=3).count(names[3][:-2]) == 3
    assert meant(names[7][:12], names[7:8], alike=0.9) == f"; did you mean {names[7]}?"
    assert meant("01M", names, alike=0.9) == ""  # too short to begin with it
    assert meant("x", []) == ""


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
