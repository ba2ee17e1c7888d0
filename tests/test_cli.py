"""The command line as a person or a script meets it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import RECIPE, TINY, Lab, put_in_use
from typer.testing import CliRunner

from champion.history import checkpoint_copy_path, read_champion
from datasets.windows import read_dataset
from episodes.reading import read_episode
from episodes.store import list_store
from features.extraction import extract
from features.registry import LAYOUT
from models.checkpoint import checkpoint_path
from models.registry import find_variant
from pipelines.cli.app import FAILED, MISMATCH, OK, REJECTED, USAGE, app
from pipelines.cli.console import INTERRUPTED
from pipelines.executors import execution_from_environment
from stages.manifest import read_manifest
from stages.workspace import SettingsError

ROOT = Path(__file__).parent.parent
STORE = ROOT / "data" / "store"
SOUND = "01M7ZVBG9G6HN7WTZ25FTK6DBF"
FAILED_LABEL = "01M7ZVF1R9X2K3EXHDZ6ZEPXS1"
BROKEN = "DEFECT04"


def phasewatch(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_extract_writes_what_a_shard_would_hold(tmp_path: Path) -> None:
    out = tmp_path / "e.npz"
    nowhere = phasewatch("extract", SOUND, "--out", tmp_path / "deep" / "e.npz")
    assert (nowhere.exit_code, list(tmp_path.iterdir())) == (USAGE, [])
    other = phasewatch("extract", SOUND, "--out", tmp_path / "e.csv")
    assert (other.exit_code, ".npz" in other.output) == (USAGE, True)
    batch = phasewatch("extract", "lab-a.2026-11-21", "--out", out)
    assert "lab-a.2026-11-21: a batch" in batch.stderr
    assert list(tmp_path.iterdir()) == []
    assert phasewatch("extract", FAILED_LABEL, "--out", out, "--anyway").exit_code == OK
    stored = list_store(STORE).find(FAILED_LABEL)
    expected = extract(read_episode(stored.path, FAILED_LABEL, LAYOUT.fields), LAYOUT)
    with np.load(out, allow_pickle=False) as file:
        assert set(file) == {
            "series",
            "features",
            "labels",
            "purity",
            "jobs",
            "starts_s",
            "channel_names",
            "feature_names",
        }
        np.testing.assert_array_equal(file["series"], expected.series)
        np.testing.assert_array_equal(file["features"], expected.features)
        assert file["labels"].tolist() == expected.windows.label.tolist()
        assert "failed" in file["labels"]
        assert file["channel_names"].tolist() == list(LAYOUT.channel_names)
        assert file["feature_names"].tolist() == list(LAYOUT.feature_names)


def test_an_extract_that_fails_leaves_nothing(tmp_path: Path) -> None:
    in_the_way = tmp_path / "e.npz"
    in_the_way.mkdir()
    assert phasewatch("extract", SOUND, "--out", in_the_way).exit_code == USAGE
    assert list(tmp_path.rglob("*")) == [in_the_way]


def test_extract_as_json_is_one_document(tmp_path: Path) -> None:
    told = phasewatch("extract", SOUND, "--out", tmp_path / "e.npz", "--json")
    assert told.exit_code == OK, told.output
    document = json.loads(told.stdout)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert document["windows"] == len(file["features"])
        assert document["bins"] == len(file["series"])
    assert (document["episode"], document["verdict"]) == (SOUND, "accepted")
    assert document["path"] == str(tmp_path / "e.npz")


def test_extract_needs_neither_dagster_nor_a_training_library(tmp_path: Path) -> None:
    program = (
        "import sys; from pipelines.cli.app import app\n"
        f"try: app(['extract', {SOUND!r}, '--out', {str(tmp_path / 'e.npz')!r}])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'dagster', 'torch', 'xgboost', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("extract", "01ARZ3NDEKTSV4RRFFQ69G5FAV"), USAGE, "no episode 01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        (("extract", "nowhere.tar.zst"), USAGE, "nowhere.tar.zst: No such file"),
        (("extract", SOUND, "--store", "nowhere"), USAGE, "no such folder"),
    ],
)
def test_a_wrong_name_is_told(tmp_path: Path, arguments: tuple, code: int, says: str) -> None:
    told = phasewatch(*arguments, "--out", tmp_path / "e.npz")
    assert told.exit_code == code
    assert says in told.output
    assert not list(tmp_path.iterdir())


# --- the verdict comes first


@pytest.mark.parametrize("anyway", [(), ("--anyway",)])
def test_an_archive_that_cannot_be_read_is_rejected_whatever_is_asked(
    tmp_path: Path, anyway: tuple[str, ...]
) -> None:
    path = next(STORE.rglob(f"*{BROKEN}.tar.zst"))
    told = phasewatch("extract", path, "--out", tmp_path / "e.npz", *anyway)
    assert told.exit_code == REJECTED
    assert "cannot be read as .tar.zst" in told.output
    assert not list(tmp_path.iterdir())


def test_a_rejected_episode_is_left_alone_unless_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "e.npz"
    told = phasewatch("extract", FAILED_LABEL, "--out", out, "--json")
    assert told.exit_code == REJECTED
    why = "labels.jsonl: the recording failed (phase 'failed') [failed_label]"
    assert f"{FAILED_LABEL} lab-c rejected: {why}" in told.stderr
    assert "--anyway" in told.stderr
    document = json.loads(told.stdout)
    assert (document["verdict"], document["reasons"]) == ("rejected", ["failed_label"])
    assert "phase 'failed'" in document["error"]
    assert not out.exists()
    assert phasewatch("extract", FAILED_LABEL, "--out", out, "--anyway").exit_code == OK
    assert out.exists()


def test_a_degraded_episode_is_used_and_said_to_be(tmp_path: Path) -> None:
    told = phasewatch("extract", "01M7ZVY78KWK1N359G30J0DB65", "--out", tmp_path / "e.npz")
    assert told.exit_code == OK
    assert " degraded: " in told.stderr
    assert "source_gap" in told.stderr


def test_an_archive_is_judged_by_its_index_row_only_where_there_is_one(tmp_path: Path) -> None:
    """A file in its store has one; the same bytes by themselves have neither row nor folder."""
    altered = next(STORE.rglob("*DEFECT01.tar.zst"))
    out = ("--out", tmp_path / "e.npz")
    assert "[tar_hash_mismatch]" in phasewatch("extract", altered, *out).stderr
    stored = list_store(STORE).find(SOUND)
    alone = tmp_path / "somewhere" / stored.path.name
    alone.parent.mkdir()
    shutil.copy(stored.path, alone)
    told = phasewatch("extract", alone, *out)
    assert (told.exit_code, told.stderr.splitlines()[0]) == (OK, f"{SOUND} lab-a accepted")
    renamed = alone.rename(alone.with_name("another.tar.zst"))
    told = phasewatch("extract", renamed, *out)
    assert (told.exit_code, "[renamed_archive]" in told.stderr) == (REJECTED, True)


def test_validate_ends_in_the_sum_of_verdicts() -> None:
    told = phasewatch("validate")
    assert told.exit_code == OK
    assert told.output.splitlines()[-1] == (
        "120 accepted + 12 degraded + 10 rejected + 2 errored = 144"
    )
    newest = told.output.splitlines()[-2].split()
    assert newest == ["lab-e.2026-11-25", "18", "1", "0", "0"]
    assert "labels.jsonl: the recording failed (phase 'failed')" in told.output
    assert "lab-a/01M7ZVY9QAA35M021R2Z7Y1HWP: on disk, not in the index" in told.output
    assert "lab-c/01M7ZWF56600000000DEFECT09: in the index, not on disk" in told.output


def test_one_episode_is_judged_by_its_id() -> None:
    told = phasewatch("validate", "01M7ZVF1R900000000DEFECT07")
    assert told.exit_code == OK
    assert "lasts 12.0 s; must be at least 15 s [too_short]" in told.output
    assert told.output.splitlines()[-1].endswith("= 1")


def test_batches_folders_paths_and_ids_are_validated_each_episode_once(tmp_path: Path) -> None:
    sound, failed = (list_store(STORE).find(name) for name in (SOUND, FAILED_LABEL))
    alone = tmp_path / sound.path.name
    shutil.copy(sound.path, alone)

    def judged(*words: object) -> list[tuple[str, str]]:
        told = phasewatch("validate", *words, "--json")
        assert told.exit_code == OK, told.output
        episodes = json.loads(told.stdout)["episodes"]
        return [(each["episode_id"], each["verdict"]) for each in episodes]

    twice = judged(SOUND, sound.path, failed.path, SOUND.lower())
    assert twice == [(SOUND, "accepted"), (FAILED_LABEL, "rejected")]
    assert judged(tmp_path) == [(SOUND, "accepted")]
    batch = judged(sound.batch)
    assert dict(batch).items() >= {SOUND: "accepted"}.items()
    assert len(batch) == len(list_store(STORE).batches[sound.batch])
    lines = phasewatch("validate", SOUND, failed.path).stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [SOUND, FAILED_LABEL]
    assert lines[-1].endswith("= 2")


def test_a_name_that_is_none_does_not_stop_the_validation_of_others(tmp_path: Path) -> None:
    told = phasewatch("validate", "nowhere", SOUND, tmp_path, "--json")
    document = json.loads(told.stdout)
    assert (told.exit_code, len(document["episodes"])) == (USAGE, 1)
    assert [each["episode"] for each in document["failures"]] == ["nowhere", str(tmp_path)]
    alone = phasewatch("validate", "nowhere", "--json")
    assert (alone.exit_code, "episodes" in json.loads(alone.stdout)) == (USAGE, False)


def test_an_archive_is_validated_by_the_policy_of_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    policy = {"validation": {"min_duration_s": 9000}}
    config.write_text(json.dumps({"resources": {"workspace": {"config": policy}}}))
    path = list_store(STORE).find(SOUND).path
    for words in ((SOUND,), (path,)):
        lines = phasewatch("validate", *words).output.splitlines()
        assert lines[0] == f"{SOUND} lab-a accepted"
        assert lines[1].startswith("1 accepted")
        told = phasewatch("validate", *words, "--config", config)
        assert "[too_short]" in told.output
    out = ("--out", tmp_path / "e.npz")
    assert phasewatch("extract", SOUND, *out, "--config", config).exit_code == REJECTED
    assert not (tmp_path / "e.npz").exists()


def test_validate_as_json_is_one_document() -> None:
    document = json.loads(phasewatch("validate", "--json").stdout)
    assert len(document["episodes"]) == 144
    assert document["summary"].endswith("= 144")


def test_another_policy_is_a_dry_run(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_gap_s: 10\nmin_duration_s: 90\n")
    told = phasewatch("validate", "--policy", policy)
    assert told.exit_code == OK
    assert "01M7ZVY78KWK1N359G30J0DB65 degraded -> accepted" in told.output
    assert "accepted -> rejected: " in told.output
    assert "verdicts would change" in told.output
    config = tmp_path / "config.yaml"
    config.write_text("resources: {workspace: {config: {validation: {max_gap_s: 10}}}}")
    policy.write_text("min_duration_s: 90\n")  # the rest is as configured
    told = phasewatch("validate", "--policy", policy, "--config", config, "--json")
    assert {each["would_be"] for each in json.loads(told.stdout)["changes"]} == {"rejected"}
    policy.write_text("max_gap: 10\n")
    wrong = phasewatch("validate", "--policy", policy)
    assert wrong.exit_code == USAGE
    assert "max_gap_s" in wrong.output
    policy.write_text("[10]\n")
    wrong = phasewatch("validate", "--policy", policy)
    assert (wrong.exit_code, ": must be a section" in wrong.output) == (USAGE, True)


# --- predict


@pytest.fixture
def scoring(trained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose gbt is the champion, as the environment names it."""
    shutil.copytree(trained.artifacts / "checkpoints", tmp_path / "checkpoints")
    lab = replace(trained, artifacts=tmp_path)
    put_in_use(trained, "gbt", lab.workspace.champion_folder)
    monkeypatch.setenv("PHASEWATCH_STORE", str(lab.store.root))
    monkeypatch.setenv("PHASEWATCH_ARTIFACTS", str(lab.artifacts))
    return lab


def checkpoint(lab: Lab, model: str) -> Path:
    return checkpoint_path(
        lab.workspace.checkpoint_folder(RECIPE), find_variant(model, "realistic")
    )


def test_the_champion_scores_unless_a_checkpoint_is_named(scoring: Lab) -> None:
    episode = scoring.store.added[0].episode_id
    by_champion = json.loads(phasewatch("predict", episode, "--json").stdout)
    kept = read_champion(scoring.workspace.champion_folder)
    assert kept is not None
    assert by_champion["checkpoint_id"] == kept.checkpoints[kept.served]
    by_cnn = phasewatch("predict", episode, "--checkpoint", checkpoint(scoring, "cnn"), "--json")
    assert json.loads(by_cnn.stdout)["model"] == "cnn_realistic"
    for document in (by_champion, json.loads(by_cnn.stdout)):
        assert (document["episode"], document["verdict"]) == (episode, "accepted")
        assert [w["start_s"] for w in document["windows"]] == [0, 5, 10, 15, 20, 25, 30]
        for window in document["windows"]:
            p = window["probabilities"]
            assert sum(p.values()) == pytest.approx(1, abs=1e-4)
            assert window["attack_probability"] == pytest.approx(
                p["infecting"] + p["infected_running"], abs=1e-5
            )


@pytest.mark.parametrize("damage", [lambda p: p.write_text("{"), lambda p: p.unlink()])
def test_a_champion_without_its_alarm_rule_scores_nothing(scoring: Lab, damage: Any) -> None:
    episode = scoring.store.added[0].episode_id
    [rule] = {*scoring.workspace.champion_folder.rglob("alarm_rule.*.json")}
    damage(rule)
    told = phasewatch("predict", episode, "--json")
    assert (told.exit_code, str(rule) in told.stderr) == (FAILED, True), told.output
    assert "--restore" in told.stderr
    assert "windows" not in json.loads(told.stdout)


@pytest.mark.parametrize(
    ("splits", "known"),
    [("test_host: lab-q", "one of lab-a, lab-b"), ("test_sessions: [may]", "20")],
)
def test_a_name_that_the_store_lacks_is_refused_before_any_work(
    scoring: Lab, tmp_path: Path, splits: str, known: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"resources: {{workspace: {{config: {{splits: {{{splits}}}}}}}}}")
    told = phasewatch("run", "--config", config)
    assert told.exit_code == USAGE
    assert f"splits.{splits.partition(':')[0]} must be {known}" in told.stderr
    assert not (scoring.artifacts / "batches").exists()


def test_what_a_model_was_trained_on_is_said(trained: Lab, scoring: Lab) -> None:
    shutil.copytree(trained.artifacts / "datasets", scoring.artifacts / "datasets")
    dataset = read_manifest(trained.workspace.artifacts_path / "datasets" / RECIPE)
    assert dataset is not None
    sides = dict(read_dataset(dataset).select("episode_id", "split").unique().iter_rows())
    known = {side: episode for episode, side in sides.items()}
    for side, seen in (("train", True), ("val", True), ("test", False)):
        told = phasewatch("predict", known[side], "--json")
        assert json.loads(told.stdout)["seen_in_training"] is seen
        named = ("--checkpoint", checkpoint(scoring, "cnn"))
        told = phasewatch("predict", known[side], *named, "--json")
        assert json.loads(told.stdout)["seen_in_training"] is seen
    assert "trained or validated on this episode" in phasewatch("predict", known["train"]).stderr
    assert "trained or validated on this episode" not in phasewatch("predict", known["test"]).stderr


def test_a_person_reads_a_table_of_windows(scoring: Lab) -> None:
    told = phasewatch("predict", scoring.store.added[0].path)
    shown, summary = told.stdout.split("\n\n")
    head, *rows, rule = shown.splitlines()
    assert head.split() == [
        "start", "phase", "probability", "labelled", "filtered", "phase", "alarm", "score", "alarm",
    ]  # fmt: skip
    assert rule.startswith("a window raises the alarm if")
    assert scoring.store.added[0].episode_id in summary
    windows = json.loads(phasewatch("predict", scoring.store.added[0].path, "--json").stdout)
    assert [row.split()[2:5:2] for row in rows] == [
        [w["phase"], w["labelled"]] for w in windows["windows"]
    ]
    assert "lab-a accepted" in told.stderr
    assert "scored by gbt_realistic, " in told.stderr


@pytest.mark.usefixtures("scoring")
def test_nothing_is_scored_of_a_rejected_episode() -> None:
    told = phasewatch("predict", FAILED_LABEL, "--store", STORE)
    assert (told.exit_code, told.stdout) == (REJECTED, "")
    assert "[failed_label]" in told.stderr
    assert phasewatch("predict", FAILED_LABEL, "--store", STORE, "--anyway").exit_code == OK


def test_a_champion_that_would_not_load_is_reported(
    scoring: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "no-home"))

    def problem() -> Any:
        return json.loads(phasewatch("champion", "--json").stdout)["problem"]

    def remedies() -> set[str]:
        return {p["remedy"] for p in json.loads(phasewatch("doctor", "--json").stdout)["problems"]}

    paths = f"--store {scoring.store.root} --artifacts {scoring.artifacts}"
    retrain = f"phasewatch run {paths}, then phasewatch promote {paths} MODEL"
    assert problem() is None
    assert retrain not in remedies()
    channels = (replace(LAYOUT.channels[0], unit="kB"), *LAYOUT.channels[1:])
    with monkeypatch.context() as drifted:
        drifted.setattr("features.registry.LAYOUT", replace(LAYOUT, channels=channels))
        difference = f"{channels[0].name}: unit was {LAYOUT.channels[0].unit}, is now kB"
        assert problem()["differences"] == [difference]
        told = phasewatch("champion")
        assert (told.exit_code, difference in told.stdout) == (MISMATCH, True)
        assert retrain in remedies()
    kept = read_champion(scoring.workspace.champion_folder)
    assert kept is not None
    header = checkpoint_copy_path(scoring.workspace.champion_folder, kept)
    sidecar = header.with_name(json.loads(header.read_text())["sidecar"])
    sidecar.write_bytes(sidecar.read_bytes()[:-1] + b"?")
    assert str(sidecar) in problem()["problem"]
    assert "phasewatch rollback" in problem()["remedy"]
    header.write_text("{")
    assert str(header) in problem()["problem"]
    assert any("phasewatch rollback" in remedy for remedy in remedies())
    assert phasewatch("champion").exit_code == FAILED


def test_the_history_shows_whole_checkpoint_ids(scoring: Lab) -> None:
    kept = read_champion(scoring.workspace.champion_folder)
    assert kept is not None
    assert f"     checkpoint {kept.checkpoints[kept.served]}" in (
        phasewatch("champion").stdout.splitlines()
    )


def test_without_a_champion_it_says_what_to_do(tmp_path: Path) -> None:
    told = phasewatch("predict", SOUND, "--artifacts", tmp_path)
    assert told.exit_code == FAILED
    assert f"{tmp_path / 'champion'}: there is no champion" in told.stderr
    assert f"phasewatch promote --artifacts {tmp_path} MODEL" in told.stderr
    assert "--checkpoint FILE" in told.stderr


def test_a_wrong_episode_is_told_before_a_model_is_looked_for(tmp_path: Path) -> None:
    told = phasewatch("predict", "NO_SUCH", "--artifacts", tmp_path)
    assert (told.exit_code, "no episode NO_SUCH" in told.stderr) == (USAGE, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", SOUND, "--checkpoint", "{}"),
        ("contract", "diff", "{}"),
        ("inspect", "{}"),
        ("report", "--artifacts", "{}"),
        ("champion", "--artifacts", "{}"),
        ("promote", "gbt", "--artifacts", "{}"),
        ("rollback", "--artifacts", "{}"),
        ("predict", SOUND, "--artifacts", "{}"),
        ("validate", "--store", "{}"),
        ("run", "--config", "{}"),
        ("doctor", "--config", "{}"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_wrong_path_is_a_wrong_usage_and_named(
    tmp_path: Path, arguments: tuple[str, ...], as_json: bool
) -> None:
    nowhere = str(tmp_path / "nowhere.ckpt.json")
    words = [word.format(nowhere) for word in arguments] + ["--json"] * as_json
    told = phasewatch(*words)
    assert told.exit_code == USAGE
    assert nowhere in told.stderr
    assert "Traceback" not in told.stderr
    if as_json:
        assert nowhere in json.loads(told.stdout)["error"]
    else:
        assert told.stdout == ""


@pytest.mark.parametrize("words", [["run"], ["doctor"], ["sync"], ["predict", SOUND]], ids=" ".join)
def test_artifacts_are_in_a_folder(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "artifacts"):
        told = phasewatch(*words, "--artifacts", path)
        assert told.exit_code == USAGE
        assert f"{tmp_path / 'file'} is a file" in told.stderr
        assert len(told.stderr.splitlines()) == 1


def test_a_reader_that_has_seen_enough_changes_no_exit_code() -> None:
    words = [sys.executable, "-m", "pipelines.cli.app", "validate", "--json"]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.read(1)
        process.stdout.close()
        assert (process.wait(180), process.stderr and process.stderr.read()) == (OK, "")


def test_a_damaged_file_is_a_failure(tmp_path: Path) -> None:
    damaged = tmp_path / "gbt_realistic.ckpt.json"
    damaged.write_text("{")
    for words in (("predict", SOUND, "--checkpoint"), ("contract", "diff")):
        assert phasewatch(*words, damaged).exit_code == FAILED
        assert phasewatch(*words, tmp_path).exit_code == USAGE  # a folder


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            "models: {gbt: {n_roundz: 3}}",
            "models.gbt: no setting 'n_roundz'; did you mean n_rounds?",
        ),
        ("models: {gbm: {}}", "models: no setting 'gbm'; did you mean gbt?"),
        ("stores: x", "no setting 'stores'; did you mean store?"),
        ("models: {gbt: {n_rounds: many}}", "models.gbt.n_rounds must be an integer, got 'many'"),
        ("models: {gbt: {max_depth: 0}}", "models.gbt.max_depth must be above 0, got 0"),
        ("models: {gbt: {subsample: .nan}}", "models.gbt.subsample must be finite, got nan"),
        ("models: {cnn: {kernel: 4}}", "models.cnn.kernel must be odd, got 4"),
        ("splits: none", "splits must be a section of settings, got 'none'"),
        ("report: {replicates: true}", "report.replicates must be an integer, got True"),
        ("seed: true", "seed must be an integer, got True"),
        ("splits: {val_by: day}", "splits.val_by must be 'episode', 'sample' or 'host', got 'day'"),
        ("device: tpu", "device must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("seed: 1, seed: 2", "gives 'seed' twice; keep one (line 1, column 43)"),
        ("1: 2", "no setting '1'"),
        ("seed: 4294967296", "seed must be at most 4,294,967,295, got 4294967296"),
        ("report: {seed: -1}", "report.seed must be at least 0, got -1"),
        ("models: {1: 2}", "models: no setting 1; choose from gbt"),
    ],
)
def test_run_names_a_wrong_setting_before_anything_runs(
    tmp_path: Path, settings: str, says: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"resources: {{workspace: {{config: {{{settings}}}}}}}")
    told = phasewatch("run", "--config", config, "--artifacts", tmp_path / "artifacts")
    assert told.exit_code == USAGE
    assert says in told.output
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a", "c.yaml: must be a mapping, got ['a']"),
        ("resources: 3", "section resources must be a mapping, got 3"),
        ("resources: {workspace: {}}", "section resources.workspace.config is missing"),
        (
            "resources: {workspace: {config: [1]}}",
            "resources.workspace.config must be a mapping, got [1]",
        ),
        ("execution: ray", "section execution must be a mapping, got 'ray'"),
        ("execution: {config: ray}", "section execution.config must be a mapping, got 'ray'"),
    ],
)
def test_a_configuration_of_another_form_is_refused(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    told = phasewatch("run", "--config", config, "--artifacts", tmp_path / "artifacts")
    assert (told.exit_code, says in told.output) == (USAGE, True), told.output
    if "execution" in text:  # Dagster reads that section, too
        with pytest.raises(SettingsError) as refused:
            execution_from_environment({"PHASEWATCH_CONFIG": str(config)})
        assert says in str(refused.value)


@pytest.mark.parametrize("words", [("extract", "--out", "x.npz"), ("exclude", "--reason", "x")])
def test_of_a_folder_one_episode_is_asked_for(words: tuple[str, ...], tmp_path: Path) -> None:
    command, *options = words
    told = phasewatch(command, tmp_path, *options)
    assert (told.exit_code, "a folder; give one episode" in told.output) == (USAGE, True)


@pytest.mark.parametrize(
    "words",
    [
        ("validate", ""), ("predict", ""), ("inspect", ""), ("extract", SOUND, "--out", ""),
        ("run", "--artifacts", ""), ("sync", "--store="), ("hub", "--artifacts="),
    ],
)  # fmt: skip
def test_an_empty_argument_is_not_the_current_directory(words: tuple[Any, ...]) -> None:
    told = phasewatch(*words)
    assert (told.exit_code, "is empty" in told.output) == (USAGE, True), told.output


@pytest.mark.parametrize(
    "words",
    [
        ("exclude", SOUND, "--reason", " "),
        ("exclude", SOUND, "--reason", "x", "--who", ""),
        ("promote", "gbt", "--accept-alarms", ""),
    ],
)
def test_a_reason_or_a_name_must_say_something(words: tuple[Any, ...], tmp_path: Path) -> None:
    told = phasewatch(*words, "--artifacts", tmp_path)
    assert (told.exit_code, words[-2] in told.stderr) == (USAGE, True), told.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("why", [("--why", ""), ("--why=",)])
def test_a_text_may_be_empty(why: tuple[str, ...], tmp_path: Path) -> None:
    told = phasewatch("rollback", *why, "--artifacts", tmp_path)
    assert (told.exit_code, "is empty" in told.output) == (FAILED, False), told.output


@pytest.mark.parametrize("words", [("validate",), ("predict",), ("inspect",), ("verify",)])
def test_a_name_that_no_file_can_have_is_refused(words: tuple[str, ...]) -> None:
    told = phasewatch(*words, "x" * 300)
    assert (told.exit_code, "unexpected" in told.output) == (USAGE, False), told.output


def test_help_starts_fast_because_nothing_heavy_is_imported() -> None:
    program = (
        "import sys, pipelines.cli.app\n"
        "heavy = {'dagster', 'torch', 'sklearn', 'numba', 'polars', 'numpy', 'pydantic'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


COLOURFUL = {"NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"}
PLAIN = {name: value for name, value in os.environ.items() if name not in COLOURFUL}


def without_dagster(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; sys.modules['dagster'] = None\n"
        f"sys.argv = ['phasewatch', *{words!r}]\n"
        "from pipelines.cli.app import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_champion_scores_where_dagster_is_not_installed(scoring: Lab) -> None:
    episode = scoring.store.added[0].episode_id
    done = without_dagster("predict", episode, "--json")
    assert done.returncode == OK, done.stderr
    assert json.loads(done.stdout) == json.loads(phasewatch("predict", episode, "--json").stdout)


def test_what_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    done = without_dagster("run", "--artifacts", str(tmp_path), "--json")
    assert done.returncode == FAILED
    message = "dagster is not installed: pip install 'phasewatch[orchestrate]'"
    assert done.stderr.splitlines()[-1] == message
    assert json.loads(done.stdout) == {"error": message}


def test_a_run_with_nothing_to_do_starts_no_dagster(trained: Lab, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"resources": {"workspace": {"config": TINY}}}))
    folders = {
        "PHASEWATCH_STORE": str(trained.store.root),
        "PHASEWATCH_ARTIFACTS": str(trained.artifacts),
        "PHASEWATCH_CONFIG": str(config),
    }
    done = without_dagster("run", "--recipe", RECIPE, **folders)
    assert (done.returncode, done.stdout) == (OK, f"{trained.workspace.report_page}\n"), done.stderr
    assert f"recipe {RECIPE} is current" in done.stderr
    assert "nothing to do" in done.stderr
    assert without_dagster("run", "--recipe", RECIPE, "--force", **folders).returncode == FAILED


COMMANDS = ["", "run", "sync", "validate", "extract", "exclude", "predict", "report", "champion",
            "promote", "rollback", "inspect", "doctor", "prune", "simulate", "contract",
            "contract diff", "verify", "keys new", "keys trust", "keys list", "log verify",
            "log replay", "log", "keys", "produce"]  # fmt: skip


def test_ctrl_c_while_commands_are_imported_is_no_stack_trace() -> None:
    script = """if True:
        import os, signal, sys

        class Interrupted:
            def find_spec(self, name, *_):
                if name == "pipelines.cli.console":
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Interrupted())
        from pipelines.cli import main
        main()
    """
    words = [sys.executable, "-c", script]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (INTERRUPTED, "", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_python_types_and_cuts_nothing_off(command: str) -> None:
    told = phasewatch(*command.split(), "--help")
    assert told.exit_code == OK
    assert not re.search(r"<|[a-z,;]\.\.\.|\{", told.output), told.output
    assert max(map(len, told.output.splitlines())) <= 80
    short = phasewatch(*command.split(), "-h")
    assert (short.exit_code, short.output) == (OK, told.output)


def installed(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell starts it."""
    return subprocess.run(
        [Path(sys.executable).with_name("phasewatch"), *words],
        env=PLAIN | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("begun", "offered"),
    [("phasewatch pred", "predict"), ("phasewatch predict E --ch", "--checkpoint")],
)
def test_the_shell_completes_a_word(begun: str, offered: str) -> None:
    told = installed(
        _PHASEWATCH_COMPLETE="complete_bash",
        COMP_WORDS=begun,
        COMP_CWORD=str(len(begun.split()) - 1),
    )
    assert told.stdout.split() == [offered], told.stderr


def test_styles_are_for_terminals() -> None:
    """On a terminal headings are bold; through a pipe there are no escape codes."""
    ours, theirs = pty.openpty()
    subprocess.run(
        [Path(sys.executable).with_name("phasewatch"), "contract"],
        env=PLAIN | {"TERM": "xterm-256color", "COLUMNS": "200"}, stdout=theirs, check=True,
    )  # fmt: skip
    os.close(theirs)
    with os.fdopen(ours, "rb") as terminal:
        assert b"\x1b[1m" in terminal.read1()
    assert "\x1b" not in installed("contract").stdout
