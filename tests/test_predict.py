"""``phasewatch predict``: phases and alarms of one episode or many, and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from builders import PROFILES, StoreBuilder
from lab import RECIPE, Lab
from typer.testing import CliRunner, Result

import phasewatch
from models.checkpoint import checkpoint_path
from models.likeness import ALPHA
from models.registry import find_variant
from pipelines.cli.app import OK, REJECTED, USAGE, app
from stages.alarm_rules import read_alarm_rule
from stages.likeness import read_likeness


def checkpoint(lab: Lab, model: str) -> Path:
    return checkpoint_path(
        lab.workspace.checkpoint_folder(RECIPE), find_variant(model, "realistic")
    )


@pytest.fixture
def predict(trained: Lab, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on the shared lab, scoring with its gbt unless told otherwise."""
    monkeypatch.setenv("PHASEWATCH_STORE", str(trained.store.root))
    monkeypatch.setenv("PHASEWATCH_ARTIFACTS", str(trained.artifacts))

    def run(*words: object, model: str = "gbt") -> Result:
        named = () if "--checkpoint" in words else ("--checkpoint", checkpoint(trained, model))
        return CliRunner().invoke(app, ["predict", *map(str, (*words, *named))])

    return run


def document(result: Result) -> dict[str, Any]:
    return json.loads(result.stdout)


def test_alarms_are_those_of_the_rule_bound_to_the_checkpoint(trained: Lab, predict: Any) -> None:
    rule = read_alarm_rule(trained.project.existing("alarm_rules/gbt_realistic", RECIPE))
    said = document(predict(trained.store.added[0].episode_id, "--json"))
    assert said["alarm_rule_id"] == rule.id
    assert (said["alarm_threshold"], said["alarm_clear_below"]) == (
        rule.threshold,
        rule.clear_below,
    )
    windows = said["windows"]
    proba = np.array([list(window["probabilities"].values()) for window in windows])
    filtered = rule.filter(proba)
    for window, row in zip(windows, filtered, strict=True):
        assert list(window["filtered_probabilities"].values()) == pytest.approx(row, abs=1e-4)
        assert window["filtered"] == rule.phases[row.argmax()]
    scores = np.array([window["alarm_score"] for window in windows])
    assert [window["alarm"] for window in windows] == rule.alarms(scores).tolist()
    raised = [window["start_s"] + 10 for window in windows if window["alarm"]]
    assert raised
    assert said["summary"]["first_alarm_s"] == (raised[0] if raised else None)
    assert sum(said["summary"]["phases"].values()) == len(windows)


def test_it_is_said_window_by_window_whether_the_episode_is_unlike_training(
    trained: Lab, predict: Any, tmp_path: Path
) -> None:
    likeness = read_likeness(trained.project.existing("likeness/realistic", RECIPE))
    episode_id, out = trained.store.added[0].episode_id, tmp_path / "windows.parquet"
    said = document(predict(episode_id, "--json", "--out", out))
    assert said["likeness_id"] == likeness.id
    windows = said["windows"]
    assert [w["unlike"] for w in windows] == [w["unlike_p"] <= ALPHA for w in windows]
    assert said["summary"]["unlike"] == windows[-1]["unlike"]
    table = pl.read_parquet(out)
    for name in ("unlike_score", "unlike_p"):
        assert table[name].to_list() == pytest.approx([w[name] for w in windows], abs=1e-6)
    assert table["unlike"].to_list() == [w["unlike"] for w in windows]
    text = predict(episode_id).stdout
    assert "unlike training" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("gone", "kept", "files"),
    [
        ("likeness_id", "alarm_rule_id", f"likeness/{RECIPE}/**/*.safetensors"),
        ("alarm_rule_id", "likeness_id", f"alarm_rules/{RECIPE}/**/rule*.json"),
    ],
)
def test_what_is_damaged_beside_a_checkpoint_is_named_and_the_episode_scored(
    trained: Lab, predict: Any, tmp_path: Path, gone: str, kept: str, files: str
) -> None:
    shutil.copytree(trained.artifacts, tmp_path / "artifacts")
    for path in (tmp_path / "artifacts").glob(files):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    said = predict(
        *(trained.store.added[0].episode_id, "--json", "--artifacts", tmp_path / "artifacts")
    )
    assert said.exit_code == OK
    assert "was changed after it was written" in said.stderr
    assert document(said)[gone] is None
    assert document(said)[kept] is not None


def test_of_a_missing_rule_and_a_damaged_likeness_each_is_told_once(
    trained: Lab, predict: Any, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(trained.artifacts, artifacts)
    shutil.rmtree(artifacts / "alarm_rules")
    for path in artifacts.glob(f"likeness/{RECIPE}/**/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    told = predict(trained.store.added[0].episode_id, "--artifacts", artifacts)
    assert told.exit_code == OK
    assert told.stderr.count("no alarm rule is bound") == 1
    assert told.stderr.count("was changed after it was written") == 1
    assert "no likeness belongs" not in told.stderr


@pytest.mark.parametrize("what", ["alarm_rules", "likeness"])
def test_a_damaged_manifest_beside_a_checkpoint_is_not_taken_for_none(
    trained: Lab, predict: Any, tmp_path: Path, what: str
) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(trained.artifacts, artifacts)
    for path in (artifacts / what / RECIPE).rglob("manifest.json"):
        path.write_text("{")
    told = predict(trained.store.added[0].episode_id, "--artifacts", artifacts)
    assert told.exit_code == OK
    assert "manifest.json: cannot be used" in told.stderr
    assert "belongs to" not in told.stderr
    assert "is bound to" not in told.stderr
    assert f"--artifacts {artifacts} --recipe {RECIPE}" in " ".join(told.stderr.split())


def test_without_a_rule_one_line_says_so_and_its_columns_are_left_out(
    trained: Lab, predict: Any, tmp_path: Path
) -> None:
    shutil.copytree(trained.workspace.checkpoint_folder(RECIPE), tmp_path / "elsewhere")
    path = tmp_path / "elsewhere" / "gbt_realistic.ckpt.json"
    words = (trained.store.added[0].episode_id, "--artifacts", tmp_path, "--checkpoint", path)
    told = predict(*words)
    assert sum("no alarm rule" in line for line in told.stderr.splitlines()) == 1
    assert "alarm score" not in told.stdout
    assert "attack probability" in told.stdout.splitlines()[0]
    assert "filtered" not in told.stdout
    assert "first alarm" not in told.stdout
    said = document(predict(*words, "--json"))
    assert said["alarm_rule_id"] is None
    assert not {"filtered", "alarm", "unlike"} & said["windows"][0].keys()
    assert said["likeness_id"] is said["summary"]["unlike"] is None
    assert "unlike" not in told.stdout


def test_the_rule_belongs_to_the_checkpoint_wherever_that_lies(
    trained: Lab, predict: Any, tmp_path: Path
) -> None:
    shutil.copytree(trained.workspace.checkpoint_folder(RECIPE), tmp_path / "elsewhere")
    path = tmp_path / "elsewhere" / "gbt_realistic.ckpt.json"
    there = document(predict(trained.store.added[0].episode_id, "--checkpoint", path, "--json"))
    here = document(predict(trained.store.added[0].episode_id, "--json"))
    assert there["windows"] == here["windows"]
    assert here["alarm_rule_id"] is not None


def test_batches_folders_paths_and_ids_are_scored_each_episode_once(
    trained: Lab, predict: Any
) -> None:
    batch, episodes = next(iter(trained.project.listing.batches.items()))
    ids = [episode.episode_id for episode in episodes]
    said = document(predict(batch, ids[0], episodes[1].path, "--json"))
    assert [episode["episode"] for episode in said["episodes"]] == ids
    assert said["failures"] == []
    folder = document(predict(episodes[0].path.parent, "--json"))
    assert [episode["episode"] for episode in folder["episodes"]] == ids
    alone = document(predict(ids[0], "--json"))
    assert alone["windows"] == said["episodes"][0]["windows"]


def test_a_bad_episode_does_not_stop_the_others(predict: Any, tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path / "store")
    sound = store.add(host="lab-a", profile=PROFILES[0], duration_s=40).episode_id
    short = store.add(host="lab-a", profile=PROFILES[0], duration_s=12).episode_id
    there = ("--store", store.root)
    told = predict(short, sound, *there, "--json")
    assert told.exit_code == REJECTED
    assert [episode["episode"] for episode in document(told)["episodes"]] == [sound]
    [failed] = document(told)["failures"]
    assert (failed["episode"], failed["reasons"]) == (short, ["too_short"])
    unknown = predict(sound, "01M7ZVBG9G6HN7WTZ25FTK6DBF", *there, "--json")
    assert unknown.exit_code == USAGE
    assert len(document(unknown)["episodes"]) == 1
    assert predict(sound, *there).exit_code == OK
    told = predict(tmp_path / "store" / "episodes", *there)
    assert (told.exit_code, "1 of " in told.output) == (REJECTED, True)
    (tmp_path / "empty").mkdir()
    assert predict(tmp_path / "empty").exit_code == USAGE


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_window_is_written(trained: Lab, predict: Any, tmp_path: Path, suffix: str) -> None:
    batch = next(iter(trained.project.listing.batches))
    out = tmp_path / f"windows{suffix}"
    said = document(predict(batch, "--out", out, "--json"))
    read = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson}[suffix]
    table = read(out)
    rows = [(e["episode"], w) for e in said["episodes"] for w in e["windows"]]
    assert table["episode_id"].to_list() == [episode for episode, _ in rows]
    for column, name in (("predicted", "phase"), ("filtered", "filtered"), ("alarm", "alarm")):
        assert table[column].to_list() == [window[name] for _, window in rows]
    assert set(table["alarm_rule_id"]) == {said["alarm_rule_id"]}


def test_a_file_that_cannot_be_written_is_named_before_anything_is_scored(
    trained: Lab, predict: Any, tmp_path: Path
) -> None:
    for out in (tmp_path / "windows.xlsx", tmp_path / "nowhere" / "windows.csv"):
        told = predict(trained.store.added[0].episode_id, "--out", out)
        assert (told.exit_code, told.stdout) == (USAGE, "")


def test_python_says_the_same(trained: Lab, predict: Any) -> None:
    project, episode_id = trained.project, trained.store.added[0].episode_id
    loaded = phasewatch.load_checkpoint(project, RECIPE, "gbt")
    scores = phasewatch.predict(project, loaded, phasewatch.read_episode(project, episode_id))
    windows = document(predict(episode_id, "--json"))["windows"]
    assert scores.filtered == [window["filtered"] for window in windows]
    assert scores.alarm is not None
    assert scores.alarm.tolist() == [window["alarm"] for window in windows]
    assert scores.table()["predicted"].to_list() == [window["phase"] for window in windows]
    assert scores.proba.sum(axis=1) == pytest.approx(1, abs=1e-5)
