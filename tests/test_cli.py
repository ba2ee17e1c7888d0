"""The command line as a person or a script meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from episodes.reading import read_episode
from episodes.store import list_store
from features.extraction import extract
from features.registry import LAYOUT
from pipelines.cli import FAILED, OK, REJECTED, USAGE, app

ROOT = Path(__file__).parent.parent
STORE = ROOT / "data" / "store"
EPISODE = "01M7ZVF1R9X2K3EXHDZ6ZEPXS1"
BROKEN = "DEFECT04"


def phasewatch(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_extract_writes_what_a_shard_would_hold(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "e.npz"
    assert phasewatch("extract", EPISODE, "--out", out).exit_code == OK
    stored = list_store(STORE).find(EPISODE)
    expected = extract(read_episode(stored.path, EPISODE, LAYOUT.fields), LAYOUT)
    with np.load(out, allow_pickle=False) as file:
        assert set(file) == {
            "series",
            "features",
            "labels",
            "purity",
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


def test_extract_takes_a_path(tmp_path: Path) -> None:
    path = list_store(STORE).find(EPISODE).path
    assert phasewatch("extract", path, "--out", tmp_path / "e.npz").exit_code == OK


def test_extract_needs_neither_dagster_nor_a_training_library(tmp_path: Path) -> None:
    program = (
        "import sys; from pipelines.cli import app\n"
        f"try: app(['extract', {EPISODE!r}, '--out', {str(tmp_path / 'e.npz')!r}])\n"
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
        (("extract", EPISODE, "--store", "nowhere"), USAGE, "no episode store here"),
    ],
)
def test_a_wrong_name_is_told(tmp_path: Path, arguments: tuple, code: int, says: str) -> None:
    told = phasewatch(*arguments, "--out", tmp_path / "e.npz")
    assert told.exit_code == code
    assert says in told.output
    assert not list(tmp_path.iterdir())


def test_a_broken_archive_exits_with_3(tmp_path: Path) -> None:
    path = next(STORE.rglob(f"*{BROKEN}.tar.zst"))
    told = phasewatch("extract", path, "--out", tmp_path / "e.npz")
    assert told.exit_code == REJECTED
    assert "not a readable .tar.zst" in told.output


def test_validate_ends_in_the_sum_of_verdicts() -> None:
    told = phasewatch("validate")
    assert told.exit_code == OK
    assert told.output.splitlines()[-1] == (
        "69 accepted + 10 degraded + 10 rejected + 2 errored = 91"
    )
    assert "labels.jsonl: phase 'failed'" in told.output
    assert "lab-a/01M7ZVY9QAA35M021R2Z7Y1HWP: on disk, not in the index" in told.output
    assert "lab-c/01M7ZWF56600000000DEFECT09: in the index, not on disk" in told.output


def test_one_episode_is_judged_by_its_id() -> None:
    told = phasewatch("validate", "01M7ZVF1R900000000DEFECT07")
    assert told.exit_code == OK
    assert "12.0 s, under 15 s [too_short]" in told.output
    assert told.output.splitlines()[-1].endswith("= 1")


def test_validate_as_json_is_one_document() -> None:
    document = json.loads(phasewatch("validate", "--json").stdout)
    assert len(document["episodes"]) == 91
    assert document["summary"].endswith("= 91")


def test_another_policy_is_a_dry_run(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_gap_s: 10\nmin_duration_s: 90\n")
    told = phasewatch("validate", "--policy", policy)
    assert told.exit_code == OK
    assert "01M7ZVY78KWK1N359G30J0DB65 degraded -> accepted" in told.output
    assert "accepted -> rejected: " in told.output
    assert "verdicts would change" in told.output
    policy.write_text("max_gap: 10\n")
    wrong = phasewatch("validate", "--policy", policy)
    assert wrong.exit_code == USAGE
    assert "max_gap_s" in wrong.output


def test_predict_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    told = phasewatch("predict", tmp_path / "no.ckpt.json", EPISODE)
    assert told.exit_code == FAILED
    assert "no such checkpoint" in told.output


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            "models: {gbt: {n_roundz: 3}}",
            "models.gbt: no setting 'n_roundz'; did you mean n_rounds?",
        ),
        ("models: {gbm: {}}", "models: no setting 'gbm'; did you mean gbt?"),
        ("stores: x", "no setting 'stores'; did you mean store?"),
        ("models: {gbt: {n_rounds: many}}", "models.gbt.n_rounds: "),
        ("splits: {val_by: day}", "splits: split policy: val_by is 'day'"),
        ("device: tpu", "device: "),
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


def test_help_starts_fast_because_nothing_heavy_is_imported() -> None:
    program = (
        "import sys, pipelines.cli\n"
        "heavy = {'dagster', 'torch', 'xgboost', 'sklearn', 'numba', 'polars', 'numpy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
