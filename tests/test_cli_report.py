"""``phasewatch report``: the leaderboard in the terminal, whole as JSON, and what it leaves out."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import PROFILES, StoreBuilder
from held_out import check_schema
from lab import RECIPE, TINY, Lab
from typer.testing import CliRunner, Result

from episodes.store import list_store
from evaluation.documents import Condition
from evaluation.wording import conditional_on, number, percent
from features.registry import MODES
from models.registry import VARIANTS
from pipelines.cli.app import FAILED, OK, USAGE, app
from stages.champion import renew_page


def report(artifacts: Path, lab: Lab, *arguments: object) -> Result:
    folders = ["--store", lab.store.root, "--artifacts", artifacts]
    return CliRunner().invoke(app, ["report", *map(str, [*folders, *arguments])])


def document(artifacts: Path, lab: Lab, *arguments: object) -> dict[str, Any]:
    result = report(artifacts, lab, "--json", *arguments)
    assert result.exit_code == OK, result.output
    return json.loads(result.stdout)


@pytest.fixture
def copied(trained: Lab, tmp_path: Path) -> Path:
    """The artefacts of ``trained``, yours to change."""
    for name in ("batches", "checkpoints", "datasets", "reports"):
        shutil.copytree(trained.artifacts / name, tmp_path / name)
    return tmp_path


def test_json_is_every_document_whole(trained: Lab) -> None:
    found = document(trained.artifacts, trained)
    assert set(found) == {"reports", "comparisons", "left_out", "unavailable", "stale"}
    assert {(r["model"], r["mode"]) for r in found["reports"]} == {
        (which.model, which.mode) for which in VARIANTS
    }
    for each in (*found["reports"], *found["comparisons"]):
        check_schema(each)
    assert [each["recipe"] for each in found["comparisons"]] == [RECIPE]
    assert found["left_out"] == []


def test_the_leaderboard_is_sorted_and_has_every_figure(trained: Lab) -> None:
    result = report(trained.artifacts, trained)
    assert result.exit_code == OK, result.output
    lines = result.stdout.splitlines()
    reports = document(trained.artifacts, trained)["reports"]
    head = next(i for i, line in enumerate(lines) if line.startswith("model"))
    rows = [line.split() for line in lines[head + 1 : head + 1 + len(reports)]]
    assert sorted(float(row[2]) for row in rows) == [float(row[2]) for row in rows][::-1]
    baselines = [float(line.split()[2]) for line in lines if line.endswith("baseline")]
    assert (baselines, len(baselines)) == (sorted(baselines, reverse=True), 4)
    by_name = {(row[0], row[1]): " ".join(row) for row in rows}
    for one in reports:
        figure = one["macro_f1"]
        told = f"{number(figure['value'])} {number(figure['low'])} to {number(figure['high'])}"
        alarms = one["detection"]
        assert told in by_name[one["model"], one["mode"]]
        assert number(one["val_macro_f1"]["value"]) in by_name[one["model"], one["mode"]]
        assert (
            f"{alarms['detected_episodes']}/{alarms['attacked_episodes']}"
            in by_name[one["model"], one["mode"]]
        )
    best = [line for line in rows if line[-3:] == ["best", "on", "validation"]]
    assert {row[1] for row in best} == set(MODES)
    rest = "\n".join(lines[head + 1 + len(reports) :])
    assert "position-only" in rest
    assert conditional_on(Condition.model_validate(reports[0]["bootstrap"]["conditional_on"])) in (
        result.stdout
    )
    assert lines[-1] == str(trained.workspace.report_page)
    for meaning in ("false alarms per hour of clean time", "ECE: expected calibration error"):
        assert result.stdout.count(meaning) == 1


def test_the_alarms_in_clean_time_are_listed_by_job(trained: Lab) -> None:
    lines = report(trained.artifacts, trained).stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("clean time "))
    model, mode = lines[head - 1].removesuffix(", best on validation:").split()
    [found] = [
        each["detection"]
        for each in document(trained.artifacts, trained)["reports"]
        if (each["model"], each["mode"]) == (model, mode)
    ]
    parts = found["by_job"]
    assert parts
    for line, part in zip(lines[head + 1 :], parts, strict=False):
        cells = re.split(r"\s{2,}", line.strip())
        if part["hours"]:
            alarmed = percent(part["clean_time_alarmed"]["value"])
            assert (cells[2], cells[5]) == (str(part["false_alarms"]), alarmed)
        else:
            assert cells[1] == "none"
    assert lines[head + 1 + len(parts)] == ""


def test_what_is_asked_for_is_all_there_is(trained: Lab) -> None:
    found = document(trained.artifacts, trained, "--mode", "oracle", "--recipe", RECIPE)
    assert {one["mode"] for one in found["reports"]} == {"oracle"}
    assert " realistic " not in report(trained.artifacts, trained, "--mode", "oracle").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "moon"], "recipe must be one of host, sample, time, session, got 'moon'"),
        (["--mode", "x"], "mode must be one of realistic, oracle, got 'x'"),
        (["--store", "/no/such/store"], "/no/such/store"),
    ],
)
def test_what_does_not_exist_is_a_wrong_usage(
    trained: Lab, arguments: list[str], said: str
) -> None:
    result = report(trained.artifacts, trained, *arguments)
    assert (result.exit_code, said in result.stderr) == (USAGE, True), result.output


def test_nothing_evaluated_yet_says_what_to_do(trained: Lab, tmp_path: Path) -> None:
    result = report(tmp_path, trained, "--recipe", "time")
    assert result.exit_code == FAILED
    assert (
        f"{tmp_path}/reports: time not evaluated yet. Run: phasewatch run --store "
        f"{trained.store.root} --artifacts {tmp_path} --recipe time"
    ) in result.stderr


def test_what_is_not_current_is_left_out_and_said(trained: Lab, copied: Path) -> None:
    reports = copied / "reports" / RECIPE
    (damaged,) = (reports / "gbt_oracle").glob("report.*.json")
    damaged.write_text(damaged.read_text().replace('"test"', '"best"', 1))
    checkpoints = copied / "checkpoints" / RECIPE
    (checkpoints / "cnn_oracle.ckpt.json").unlink()
    left_out = document(copied, trained)["left_out"]
    assert {item["stage"]: item["code"] for item in left_out} == {
        "eval_reports/gbt_oracle": "damaged",
        "eval_reports/cnn_oracle": "not_made",
        "comparisons": "inputs",
    }
    text = report(copied, trained).stdout
    assert f"left out: cnn_oracle ({RECIPE}): checkpoints/cnn_oracle: missing" in text
    shutil.rmtree(copied / "datasets")
    nothing = report(copied, trained)
    assert nothing.exit_code == FAILED
    assert "gbt_realistic" in nothing.stderr
    assert ": datasets: missing\n" in nothing.stderr
    assert "Run: phasewatch run" in nothing.stderr


def test_another_store_leaves_all_out_even_with_batches_of_the_same_names(
    trained: Lab, tmp_path: Path
) -> None:
    other = StoreBuilder(tmp_path)
    other.populate(profiles=PROFILES[:3], variants=2, duration_s=40)
    assert list_store(tmp_path).batches.keys() == trained.workspace.listing().batches.keys()
    result = report(trained.artifacts, trained, "--store", tmp_path)
    assert result.exit_code == FAILED
    assert f"gbt_realistic ({RECIPE}), " in result.stderr
    assert "ingested from another store\n" in result.stderr
    assert len(result.stderr.splitlines()) == 3


def test_a_store_that_grew_is_no_other_store(trained: Lab, tmp_path: Path) -> None:
    shutil.copytree(trained.store.root, tmp_path, dirs_exist_ok=True)
    grown = StoreBuilder.reopen(tmp_path)
    added = grown.add("lab-a", profile=PROFILES[0], sample=f"{PROFILES[0]}.v9", duration_s=40)
    assert list_store(tmp_path).find(added.episode_id).batch in (
        trained.workspace.listing().batches
    )
    found = document(trained.artifacts, trained, "--store", tmp_path)
    assert (len(found["reports"]), found["left_out"]) == (len(VARIANTS), [])


def test_what_was_trained_with_other_settings_is_said(trained: Lab, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"

    def stale(**settings: Any) -> list[dict[str, str]]:
        given = TINY | settings
        config.write_text(json.dumps({"resources": {"workspace": {"config": given}}}))
        return document(trained.artifacts, trained, "--config", config)["stale"]

    assert stale() == []
    (item,) = stale(models=TINY["models"] | {"gbt": {"n_rounds": 13}})
    assert item["recipe"] == RECIPE
    assert item["why"].startswith("checkpoints/gbt_realistic sample: made with other settings")
    said = report(trained.artifacts, trained, "--config", config).stdout
    command = f"phasewatch run --config {config} --store {trained.store.root} --artifacts"
    assert f"recipe {RECIPE} is not current: {item['why']}. Run: {command}" in said


def test_a_page_that_cannot_be_written_does_not_undo_a_promotion(
    trained: Lab, copied: Path
) -> None:
    lab = replace(trained, artifacts=copied)
    tables = copied / "reports" / "tables"
    (copied / "reports" / "manifest.json").unlink()
    shutil.rmtree(tables)
    tables.touch()
    made = renew_page(lab.workspace)
    assert made.page is None
    assert str(tables) in made.problem


def test_comparisons_of_other_checkpoints_are_left_out(trained: Lab, copied: Path) -> None:
    from stages.evaluation import read_comparisons
    from stages.manifest import draft, read_manifest

    folder = copied / "reports" / RECIPE / "comparisons"
    manifest = read_manifest(folder)
    assert manifest is not None
    other = read_comparisons(manifest).model_dump()
    other["predictors"][0]["checkpoint_id"] = "another"
    with draft(folder) as staged:
        staged.new_file("comparisons", ".json").write_text(json.dumps(other))
        staged.commit("of other predictions", manifest.facts)
    found = document(copied, trained)
    assert found["comparisons"] == []
    (item,) = found["left_out"]
    assert (item["stage"], item["code"]) == ("comparisons", "inputs")
    assert item["details"]["inputs"] == ["checkpoints/gbt_realistic"]
