"""Promotion: who may become champion, what is kept of it, and the way back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from builders import DAY_NS, START_NS, ulid
from held_out import CLASSES, POLICY, WINDOWS, dataset, guess, plain_rule, predictions
from lab import HAD, QUIET, TINY, Lab, copy_of, failure, materialized, once
from typer.testing import CliRunner

import champion.history
import features.registry
from assets.factory import asset_key
from champion.history import (
    SERVED_RECIPE,
    TRAINING_FILE,
    ChampionEntry,
    ChampionError,
    checkpoint_copy_folder,
    checkpoint_copy_path,
    copy_checkpoint,
    load_checkpoint_copy,
    put_in_use,
    read_champion,
    read_history,
    read_training,
    roll_back,
)
from champion.rules import (
    TrialOutcome,
    alarm_evidence,
    baseline_evidence,
    champion_evidence,
    grounds_against_alarms,
    grounds_against_champion,
    grounds_against_first,
    not_held_out,
)
from datasets.splits import RECIPES, SplitPolicy
from evaluation.documents import Objection, Subject
from evaluation.figures import ReportPolicy
from evaluation.wording import objection
from features.registry import LAYOUT
from models.checkpoint import CheckpointError, ContractMismatchError, checkpoint_path
from models.inspection import InventoryEntry
from models.registry import Variant, find_variant
from pipelines.cli.app import FAILED, MISMATCH, OK, USAGE, app
from pipelines.cli.champion import objection_lines
from pipelines.graph import build_defs
from stages.alarm_rules import read_alarm_rule
from stages.champion import files_to_copy, restore, run_trial
from stages.manifest import draft, read_manifest

GBT, KNN = find_variant("gbt", "realistic"), find_variant("knn", "realistic")


# --- the rules, on predictions made by hand


def evidence(challenger: list[str], champion: list[str], windows: list[dict] = WINDOWS) -> dict:
    table = predictions(windows, {"challenger": challenger, "champion": champion})
    return champion_evidence("host", table, CLASSES, POLICY)


def grounds(**recipes: dict[str, Any]) -> list[Objection]:
    return grounds_against_champion(recipes)


def said(found: list[Objection]) -> list[tuple[str, str | None, str | None]]:
    return [(ground.code, ground.recipe, ground.about) for ground in found]


TRUTH = [w["actual"] for w in WINDOWS]
WRONG = ["armed" if actual == "clean" else "clean" for actual in TRUTH]
POOR, FAIR = guess(WINDOWS, 0.3, 1), guess(WINDOWS, 0.6, 2)


def test_better_everywhere_is_granted() -> None:
    found = evidence(TRUTH, POOR)
    assert found["challenger"] == pytest.approx(1.0)
    assert found["difference"]["low"] > 0
    assert grounds(host=found, sample=found, time=found) == []


def test_one_recipe_that_may_be_worse_is_enough_against_it() -> None:
    (ground,) = grounds(
        host=evidence(TRUTH, POOR), sample=evidence(TRUTH, POOR), time=_only_interval_worse()
    )
    assert said([ground]) == [("may_be_worse", "time", None)]
    bounds = {"value": 0.02, "low": -0.006, "high": 0.05}
    assert bounds.items() < ground.numbers.items()
    assert (ground.numbers["margin"], ground.numbers["episodes"]) == (0.005, 12)
    assert objection(ground).startswith("Recipe time: it may be worse than the champion by more")


def _only_interval_worse() -> dict[str, Any]:
    found = evidence(TRUTH, TRUTH)
    return found | {"difference": {"value": 0.02, "low": -0.006, "high": 0.05}}


def test_the_margin_is_half_a_point() -> None:
    just = evidence(TRUTH, TRUTH) | {"difference": {"value": 0.0, "low": -0.0049, "high": 0.01}}
    assert grounds(host=evidence(TRUTH, POOR), time=just) == []
    at = just | {"difference": {"value": 0.0, "low": -0.005, "high": 0.01}}
    assert len(grounds(host=evidence(TRUTH, POOR), time=at)) == 1


def test_as_good_everywhere_is_not_better_anywhere() -> None:
    found = grounds(host=evidence(FAIR, FAIR), time=evidence(FAIR, FAIR))
    assert said(found) == [("nowhere_better", None, None)]
    assert found[0].numbers == {"low": 0.0}


@pytest.mark.parametrize(
    ("column", "name", "what"), [("profile", "io-walk", "profile"), ("host_id", "lab-b", "host")]
)
def test_a_profile_or_host_must_not_pay_for_the_others(column: str, name: str, what: str) -> None:
    """Far better on the whole, and yet refused."""
    champion = [
        truth if w[column] == name else poor
        for w, truth, poor in zip(WINDOWS, TRUTH, POOR, strict=True)
    ]
    challenger = _spoiled(column, name, every=8)
    found = evidence(challenger, champion)
    assert found["difference"]["low"] > 0
    (ground,) = grounds(host=found)
    group = next(g for g in found["groups"] if g["name"] == name)
    fall = group["champion"] - group["challenger"]
    assert fall > 0.03
    assert said([ground]) == [("group_falls", "host", name)]
    assert ground.names == {"group": what}
    assert (ground.numbers["falls_by"], ground.numbers["margin"]) == (fall, 0.03)
    assert f"{what} {name}: macro F1 falls by {fall:.3f}, from" in objection(ground)


def test_of_many_groups_that_fall_the_deepest_is_shown_for_each_recipe() -> None:
    found = grounds(host=evidence(POOR, TRUTH), time=evidence(POOR, TRUTH))
    falls = [g for g in found if g.code == "group_falls"]
    lines = list(objection_lines(found))
    assert len(lines) == len(found) - len(falls) + 2
    for recipe in ("host", "time"):
        here = [g for g in falls if g.recipe == recipe]
        deepest = max(here, key=lambda g: g.numbers["falls_by"])
        (line,) = [each for each in lines if each.startswith(objection(deepest))]
        assert f" {len(here) - 1} more profiles or hosts lose" in line


def _spoiled(column: str, name: str, *, every: int) -> list[str]:
    """The truth, but wrong in some windows of one group."""
    numbers = iter(range(len(WINDOWS)))
    return [
        wrong if w[column] == name and next(numbers) % every == 0 else truth
        for w, truth, wrong in zip(WINDOWS, TRUTH, WRONG, strict=True)
    ]


def test_three_points_are_allowed() -> None:
    group = {"what": "host", "name": "lab-a", "episodes": 6, "champion": 0.93, "challenger": 0.90}
    found = evidence(TRUTH, POOR)
    assert grounds(host=found | {"groups": [group]}) == []
    assert len(grounds(host=found | {"groups": [group | {"challenger": 0.899}]})) == 1


def test_grounds_are_all_listed() -> None:
    found = evidence(POOR, TRUTH)
    listed = said(grounds(host=found, sample=found, time=found))
    for recipe in HAD:
        assert ("worse", recipe, None) in listed
        assert ("group_falls", recipe, "lab-a") in listed
        assert ("group_falls", recipe, "io-walk") in listed
    assert listed[-1] == ("nowhere_better", None, None)


def test_too_few_episodes_left_are_a_ground() -> None:
    (ground,) = grounds(host=evidence(TRUTH, POOR), time={"episodes": 4, "left_out": 9})
    assert said([ground]) == [("too_few_left", "time", None)]
    assert ground.numbers == {"episodes": 4, "needed": 5, "left_out": 9}


def test_a_skipped_recipe_says_nothing() -> None:
    skipped = {"skipped": "single_session", "found": ["2026-11-02"]}
    assert grounds(host=evidence(TRUTH, POOR), session=skipped) == []
    assert grounds_against_first({"session": skipped}) == []
    assert grounds_against_alarms({"session": skipped}, POLICY) == []


def test_the_first_must_beat_every_baseline() -> None:
    by_model = {"challenger": TRUTH, "position_only": POOR, "missingness_only": POOR}
    good = baseline_evidence("host", predictions(WINDOWS, by_model), CLASSES, dataset(), POLICY)
    assert grounds_against_first({"host": good}) == []
    by_model["position_only"] = TRUTH
    tied = baseline_evidence("host", predictions(WINDOWS, by_model), CLASSES, dataset(), POLICY)
    found = grounds_against_first({"host": good, "time": tied})
    assert said(found) == [("baseline_not_beaten", "time", "position_only")]
    few = grounds_against_first({"host": good, "time": {"episodes": 4}})
    assert said(few) == [("too_few_tested", "time", None)]


# --- what an operator feels


def alarms(told: list[str], policy: ReportPolicy = POLICY, windows: list[dict] = WINDOWS) -> dict:
    """The evidence of a model that is right on validation."""
    truth = [w["actual"] for w in windows]
    table = predictions(windows, {"challenger": told}, {"challenger": truth})
    subject = Subject(
        model="gbt", mode="realistic", checkpoint_id="c", recipe="host", dataset_version="d"
    )
    rule, _ = plain_rule(table, "challenger", policy)
    found = alarm_evidence("host", table, CLASSES, LAYOUT.window, policy, subject, rule)
    return {"alarms": found}


LOUD = ["infected_running"] * len(WINDOWS)


def test_a_model_over_the_budget_is_refused_on_each_recipe_where_alarms_count() -> None:
    quiet, loud = alarms(TRUTH), alarms(LOUD)
    every = dict.fromkeys(RECIPES, loud)
    assert grounds_against_alarms({"host": quiet, "time": quiet}, POLICY) == []
    found = grounds_against_alarms(every, POLICY)
    assert [(g.code, g.recipe) for g in found] == [
        (code, recipe)
        for recipe in ("session", "host", "time")
        for code in ("alarms_over_budget", "alarmed_time_over_budget")
    ]
    rate, share = (g.numbers for g in found[:2])
    assert (rate["budget"], share["budget"], share["value"]) == (2.0, 0.02, 1.0)
    assert rate["low"] < rate["value"] < rate["high"]
    loose = ReportPolicy(replicates=100, false_alarms_per_hour=1e9, clean_time_alarmed=1.0)
    assert grounds_against_alarms(every, loose) == []


def test_alarms_that_were_never_measured_are_not_within_the_budget() -> None:
    busy = [w | {"purity": 0.5} for w in WINDOWS]
    assert said(grounds_against_alarms({"host": alarms(LOUD, windows=busy)}, POLICY)) == [
        ("alarms_unmeasured", "host", None)
    ]


def test_only_alarms_can_be_accepted() -> None:
    over = grounds_against_alarms({"host": alarms(LOUD)}, POLICY)
    worse = Objection(code="nowhere_better", numbers={"low": 0.0})
    assert not TrialOutcome(over).granted
    accepted = TrialOutcome(over, accept_alarms="a small corpus")
    assert accepted.granted
    assert accepted.accepted == over
    assert TrialOutcome([worse, *over], accept_alarms="a small corpus").blocking == [worse]
    assert TrialOutcome([], accept_alarms="not needed").accepted == []


# --- test episodes that the champion was trained on


def table(**columns: list) -> pl.DataFrame:
    n = len(columns["episode_id"])
    rows = {
        "host_id": ["lab-a"] * n,
        "sample_sha256": [f"s{i}" for i in range(n)],
        "started_at_wall_ns": [100 * i for i in range(n)],
        "ended_at_wall_ns": [100 * i + 50 for i in range(n)],
    }
    return pl.DataFrame(rows | columns)


def test_what_the_champion_knows_is_no_test() -> None:
    training = table(episode_id=["A", "B"], sample_sha256=["s0", "s1"])
    test = table(
        episode_id=["A", "C", "D", "E"],
        host_id=["lab-c", "lab-a", "lab-c", "lab-c"],
        sample_sha256=["s8", "s9", "s1", "s9"],
        started_at_wall_ns=[900, 900, 900, 149],
    )
    known = {
        recipe: not_held_out(recipe, training, test, SplitPolicy()).to_list() for recipe in HAD
    }
    assert known == {
        "host": [True, True, False, False],
        "sample": [True, False, True, False],
        "time": [True, False, False, True],
    }


def test_the_sessions_that_the_champion_knows_are_no_test() -> None:
    one, same, next_day = (
        ulid(t // 1_000_000) for t in (START_NS, START_NS + 1, START_NS + DAY_NS)
    )
    training, test = table(episode_id=[one]), table(episode_id=[one, same, next_day])
    assert not_held_out("session", training, test, SplitPolicy()).to_list() == [True, True, False]


# --- real checkpoints


STUMP = {"n_rounds": 1, "max_depth": 1, "colsample_bynode": 0.01, "n_threads": 1}
WEAK = {"models": TINY["models"] | {"gbt": STUMP}}


@pytest.fixture(scope="module")
def base(trained_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A weak gbt is champion, knn was trained as well. Shared: tests use copies."""

    def make(root: Path) -> None:
        with copy_of(trained_lab, root) as lab:
            lab.settings = lab.settings | WEAK
            only = [
                dg.AssetKey("datasets"),
                asset_key(f"checkpoints/{GBT.name}"),
                asset_key(f"checkpoints/{KNN.name}"),
                asset_key(f"alarm_rules/{GBT.name}"),
                asset_key(f"alarm_rules/{KNN.name}"),
            ]
            for recipe in HAD:
                result = lab.execute("retrain", recipe, only=only)
                assert result.success, failure(result)
            put_in_use(lab.workspace.champion_folder, kept(lab, GBT), replaces=None)

    template = once(tmp_path_factory, "champion-lab", make)
    with copy_of(template, tmp_path_factory.mktemp("champion")) as lab:
        lab.settings = lab.settings | WEAK
        yield lab


def kept(lab: Lab, which: Variant) -> ChampionEntry:
    """A model as it is put into use, without the outcome of a trial."""
    ids = {
        recipe: copy_checkpoint(
            lab.workspace.champion_folder,
            checkpoint_path(lab.workspace.checkpoint_folder(recipe), which),
            files_to_copy(lab.project, recipe, which, serves=recipe == SERVED_RECIPE).files,
        )
        for recipe in HAD
    }
    rules = {
        recipe: read_alarm_rule(lab.project.existing(f"alarm_rules/{which.name}", recipe)).id
        for recipe in HAD
    }
    return replace(reign_of(which.model), checkpoints=ids, alarm_rules=rules)


@pytest.fixture
def lab(base: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    shutil.copytree(base.artifacts, tmp_path / "artifacts")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    return replace(base, artifacts=tmp_path / "artifacts")


ACCEPT = ["--accept-alarms", "the store has no clean time"]


def phasewatch(lab: Lab, *arguments: str):
    options = ["--artifacts", str(lab.artifacts)]
    if arguments[0] == "promote":
        options += ["--store", str(lab.store.root)]
    return CliRunner().invoke(app, [*arguments, *options])


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def proba(lab: Lab) -> np.ndarray:
    reign = read_champion(lab.workspace.champion_folder)
    assert reign is not None
    checkpoint = load_checkpoint_copy(lab.workspace.champion_folder, reign, LAYOUT)
    rows = np.random.default_rng(0).normal(1, 50, (20, checkpoint.model.n_inputs_ or 0))
    return checkpoint.model.predict_proba(rows.astype(np.float32))


def test_a_better_challenger_replaces_it_and_a_rollback_restores_it(lab: Lab) -> None:
    folder = lab.workspace.champion_folder
    before, said_before = files(folder / "checkpoints"), proba(lab)
    told = phasewatch(lab, "promote", "knn", "--why", "nearer", "--json")
    assert told.exit_code == FAILED
    unmeasured = [("alarms_unmeasured", recipe) for recipe in ("host", "time")]
    refused = json.loads(told.stdout)
    assert [(g["code"], g["recipe"]) for g in refused["reasons"]] == unmeasured
    told = phasewatch(lab, "promote", "knn", "--why", "nearer", "--json", *ACCEPT)
    assert told.exit_code == OK, told.output
    document = json.loads(told.stdout)
    assert document["promoted"]
    assert document["against"] == "gbt_realistic"
    assert document["reasons"] == []
    assert document["page"] == str(lab.workspace.report_page)
    page = lab.workspace.report_page.read_bytes()
    assert b"Champion: <b>knn_realistic</b>" in page
    assert [(g["code"], g["recipe"]) for g in document["accepted"]] == unmeasured
    skipped = document["recipes"].pop("session")
    assert skipped == {"skipped": "single_session", "found": ["2026-11-02"]}
    assert {found["left_out"] for found in document["recipes"].values()} == {0}
    assert not np.allclose(proba(lab), said_before)
    reign = read_champion(folder)
    assert reign is not None
    assert (reign.number, reign.previous, reign.why) == (2, 1, "nearer")
    assert reign.accepted is not None
    assert reign.accepted["why"] == ACCEPT[1]
    assert [(g["code"], g["recipe"]) for g in reign.accepted["grounds"]] == unmeasured
    assert f"accepted: {ACCEPT[1]}" in phasewatch(lab, "champion").stdout
    for recipe in HAD:
        trained = checkpoint_path(lab.workspace.checkpoint_folder(recipe), KNN)
        assert checkpoint_copy_path(folder, reign, recipe).read_bytes() == trained.read_bytes()

    again = phasewatch(lab, "promote", "knn")
    assert again.exit_code == FAILED
    assert "is already the champion, with these checkpoints" in again.stdout
    weaker = phasewatch(lab, "promote", "gbt")
    assert weaker.exit_code == FAILED
    assert "worse than the champion" in weaker.stdout

    shutil.rmtree(lab.artifacts / "checkpoints")  # nothing of the champion's hangs on it
    told = phasewatch(lab, "rollback", "--why", "alarms")
    assert told.exit_code == OK, told.output
    assert lab.workspace.report_page.read_bytes() == page  # it cannot be made, and that is no harm
    assert "No evaluation report is current" in told.stdout
    paths = f"--artifacts {lab.artifacts}"
    assert told.stdout.endswith(f"with this champion yet. Run: phasewatch run {paths}\n")
    assert before.items() <= files(folder / "checkpoints").items()
    np.testing.assert_array_equal(proba(lab), said_before)
    document = json.loads(phasewatch(lab, "champion", "--json").stdout)
    assert [r["action"] for r in document["history"]] == ["promoted", "promoted", "rolled back"]
    assert document["champion"]["checkpoints"] == document["history"][0]["checkpoints"]
    nothing = phasewatch(lab, "rollback")
    assert nothing.exit_code == FAILED
    assert "Cannot roll back" in nothing.output


def test_the_first_is_judged_by_the_baselines(lab: Lab) -> None:
    """In this store each phase has its time in the episode, so that a clock does as well."""
    shutil.rmtree(lab.workspace.champion_folder)
    told = phasewatch(lab, "promote", "knn")
    assert told.exit_code == FAILED
    assert "not better than position-only" in told.stdout
    assert "missingness-only" not in told.stdout.split("is not promoted:")[1]
    assert "There is no champion yet" in phasewatch(lab, "champion").stdout


def test_what_is_no_reason_but_good_to_know_is_noted(lab: Lab, tmp_path: Path) -> None:
    settings = tmp_path / "same.yaml"
    own = {"resources": {"workspace": {"config": lab.settings}}}
    settings.write_text(json.dumps(own))

    def notes(model: str, *words: str) -> list[str]:
        told = phasewatch(lab, "promote", model, "--dry-run", "--json", *words)
        return json.loads(told.stdout)["notes"]

    other = "knn_realistic was made with other settings"
    (same,) = notes("knn")
    assert other in same
    assert all(recipe in same for recipe in HAD)
    shutil.rmtree(lab.workspace.champion_folder)
    (note,) = notes("gbt", "--config", str(settings))
    assert note.startswith("knn_realistic is better on validation: macro F1 0.")
    assert f"phasewatch promote --config {settings} --store " in note
    assert note.endswith(" knn --dry-run")
    assert notes("knn", "--config", str(settings)) == []


def test_two_rollbacks_go_two_steps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("load_checkpoint_copy", "check_evidence"):
        monkeypatch.setattr(champion.history, check, lambda *_: None)
    last = None
    for model in ("gbt", "mlp", "cnn"):
        last = put_in_use(tmp_path, reign_of(model), replaces=last)
    back = [roll_back(tmp_path, LAYOUT, by="", why="").model for _ in range(2)]
    assert back == ["mlp", "gbt"]
    forward = put_in_use(tmp_path, reign_of("knn"), replaces=read_champion(tmp_path))
    assert roll_back(tmp_path, LAYOUT, by="", why="").model == "gbt"
    assert forward.number == 6


def reign_of(model: str) -> ChampionEntry:
    ids = dict.fromkeys(HAD, "0" * 64)
    return ChampionEntry(0, "promoted", model, "realistic", "time", ids, "", "", "", {}, None)


def test_a_dry_run_changes_nothing(lab: Lab) -> None:
    before = files(lab.artifacts)
    told = phasewatch(lab, "promote", "knn", "--dry-run", *ACCEPT)
    assert told.exit_code == OK, told.output
    assert "knn_realistic may be promoted" in told.stdout
    assert files(lab.artifacts) == before


def test_only_realistic_models_are_promoted(lab: Lab) -> None:
    told = phasewatch(lab, "promote", "gbt_oracle")
    assert told.exit_code == FAILED
    assert "which a device does not have" in told.stdout
    assert phasewatch(lab, "promote", "gtb").exit_code == USAGE


def test_a_challenger_that_does_not_verify_is_refused(lab: Lab) -> None:
    folder = lab.workspace.checkpoint_folder("host")
    sidecar = next(folder.glob("knn_realistic.*.safetensors"))
    sidecar.write_bytes(sidecar.read_bytes()[:-1] + b"?")
    checkpoint_path(lab.workspace.checkpoint_folder("time"), KNN).unlink()
    found = run_trial(lab.project, KNN).outcome.grounds
    assert said(found) == [("unverified", "host", None), ("unverified", "time", None)]
    assert "not the sidecar saved with this header" in objection(found[0])
    assert "no such checkpoint" in objection(found[1])


def test_golden_vectors_are_replayed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.champion.differences", lambda _: ["E: guest.forks.mean differs"])
    found = run_trial(lab.project, KNN).outcome.grounds
    assert [(g.code, g.recipe) for g in found] == [("does_not_verify", r) for r in HAD]
    assert all("does not verify: E: guest.forks.mean differs" in objection(g) for g in found)


def test_a_challenger_that_cannot_be_verified_here_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"unverified": "needs xgboost, which is not installed"}
    monkeypatch.setattr(
        "stages.champion.verify", lambda path, *_: InventoryEntry(path, {}, **missing)
    )
    trial = run_trial(lab.project, KNN)
    assert not trial.outcome.granted
    assert [objection(g) for g in trial.outcome.grounds] == [
        f"Recipe {r}: {missing['unverified']}" for r in HAD
    ]


def test_a_challenger_of_another_dataset_is_refused(lab: Lab) -> None:
    dataset = read_manifest(lab.workspace.artifacts_path / "datasets" / "sample")
    assert dataset is not None
    with draft(dataset.folder) as staged:
        shutil.copy(dataset.path("windows"), staged.new_file("windows", ".parquet"))
        staged.commit("grown since", dataset.facts, dataset.stage_version)
    assert said(run_trial(lab.project, KNN).outcome.grounds) == [
        ("other_dataset", "sample", KNN.name)
    ]


def test_episodes_that_the_champion_was_trained_on_are_left_out(lab: Lab) -> None:
    """The champion was trained with other sides: what it knows of today's test is no test."""
    workspace = lab.workspace
    reign = read_champion(workspace.champion_folder)
    assert reign is not None
    path = checkpoint_copy_path(workspace.champion_folder, reign, "time").with_name(TRAINING_FILE)
    windows = pl.read_parquet(
        next((workspace.artifacts_path / "datasets" / "time").glob("*.parquet"))
    )
    test = windows.filter(pl.col("split") == "test")["episode_id"].unique().sort()
    known = read_training(workspace.champion_folder, reign, "time")
    row = windows.select(known.columns).unique().filter(pl.col("episode_id") == test[0])
    pl.concat([known, row.with_columns(ended_at_wall_ns=pl.lit(0, pl.Int64))]).write_parquet(path)
    found = run_trial(lab.project, KNN).outcome.recipes["time"]
    assert (found["left_out"], found["episodes"]) == (1, len(test) - 1)

    pl.concat([known, row.with_columns(ended_at_wall_ns=pl.lit(2**62, pl.Int64))]).write_parquet(
        path
    )
    outcome = run_trial(lab.project, KNN).outcome
    assert not outcome.granted
    assert said(outcome.grounds)[0] == ("too_few_left", "time", None)
    assert outcome.grounds[0].numbers["episodes"] == 0


def test_a_champion_of_another_layout_cannot_come_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = read_champion(lab.workspace.champion_folder)
    put_in_use(lab.workspace.champion_folder, kept(lab, KNN), replaces=champion)
    channels = list(LAYOUT.channels)
    channels[31] = replace(channels[31], unit="kB/s")
    monkeypatch.setattr(features.registry, "LAYOUT", replace(LAYOUT, channels=tuple(channels)))
    before = files(lab.artifacts)
    told = phasewatch(lab, "rollback")
    assert told.exit_code == MISMATCH
    assert "guest.net_rx_bytes: unit was B/s, is now kB/s" in told.output
    assert files(lab.artifacts) == before


def test_a_champion_of_another_layout_is_in_nobodys_way(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ContractMismatchError("gbt", ["guest.net_rx_bytes: unit was B/s"], "Retrain")

    monkeypatch.setattr("stages.champion.load_checkpoint_copy", refuse)
    recipes = run_trial(lab.project, KNN).outcome.recipes
    assert [recipe for recipe, found in recipes.items() if "baselines" in found] == HAD


def test_a_damaged_copy_is_no_way_out(lab: Lab) -> None:
    """Neither is a challenger judged as if there were no champion, nor is it restored."""
    folder = lab.workspace.champion_folder
    reign = read_champion(folder)
    assert reign is not None
    next(checkpoint_copy_folder(folder, reign.checkpoints["host"]).glob("*.ubj")).unlink()
    (ground,) = run_trial(lab.project, KNN).outcome.grounds
    assert ground.code == "champion_unloadable"
    put_in_use(folder, kept(lab, KNN), replaces=reign)
    with pytest.raises(CheckpointError, match="is missing; copy both files"):
        roll_back(folder, LAYOUT, by="", why="")


def test_missing_copies_are_restored_not_trained(lab: Lab) -> None:
    folder = lab.workspace.champion_folder
    reign = read_champion(folder)
    assert reign is not None
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(CheckpointError, match="champion --restore") as refused:
        load_checkpoint_copy(folder, reign, LAYOUT)
    status = lab.project.status(lab.project.stages["champion"], "")
    assert (status.code, "champion --restore" in status.remedy) == ("damaged", True)
    assert "phasewatch run" not in f"{refused.value} {status.line} {status.remedy}"


def test_only_damaged_copies_are_restored(lab: Lab) -> None:
    """Of the others, the trained checkpoint may be gone."""
    folder, stage = lab.workspace.champion_folder, lab.project.stages["champion"]
    reign = read_champion(folder)
    assert reign is not None
    variant = find_variant(reign.model, reign.mode)
    gone, damaged, without_rule = HAD[:3]
    for path in lab.workspace.checkpoint_folder(gone).glob(f"{variant.name}.*"):
        path.unlink()
    copy = checkpoint_copy_path(folder, reign, damaged)
    copy.write_bytes(copy.read_bytes()[:-2])
    other = checkpoint_copy_folder(folder, reign.checkpoints[without_rule])
    next(other.glob("alarm_rule.*.json")).unlink()
    assert not lab.project.status(stage, "", verify=True).current
    copied = restore(lab.project)
    assert {path.name for path in copied} == {
        reign.checkpoints[damaged], reign.checkpoints[without_rule],
    }  # fmt: skip
    assert lab.project.status(stage, "", verify=True).current
    copy = checkpoint_copy_path(folder, reign, gone)
    copy.write_bytes(copy.read_bytes()[:-2])
    with pytest.raises(ChampionError, match=f"{gone} is not in checkpoints any more") as refused:
        restore(lab.project)
    assert "rollback" not in str(refused.value)  # there was none before


@pytest.mark.parametrize("kept_file", ["alarm_rule.*.json", TRAINING_FILE])
def test_a_champion_without_all_its_files_cannot_come_back(lab: Lab, kept_file: str) -> None:
    folder = lab.workspace.champion_folder
    reign = read_champion(folder)
    assert reign is not None
    put_in_use(folder, kept(lab, KNN), replaces=reign)
    next(checkpoint_copy_folder(folder, reign.checkpoints["host"]).glob(kept_file)).unlink()
    with pytest.raises(ChampionError):
        roll_back(folder, LAYOUT, by="", why="")
    now = read_champion(folder)
    assert now is not None
    assert now.model == "knn"


# --- the pointer


def test_a_kill_while_the_pointer_is_written_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = put_in_use(tmp_path, reign_of("gbt"), replaces=None)
    text = (tmp_path / "champion.json").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            put_in_use(tmp_path, reign_of("mlp"), replaces=first)
    assert (tmp_path / "champion.json").read_bytes() == text
    assert put_in_use(tmp_path, reign_of("mlp"), replaces=first).number == 2


def test_a_champion_crowned_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    first = put_in_use(tmp_path, reign_of("gbt"), replaces=None)
    with pytest.raises(ChampionError, match="another model has been promoted in the meantime"):
        put_in_use(tmp_path, reign_of("mlp"), replaces=None)
    assert read_history(tmp_path) == [first]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("{\n", "is not JSON (line 2, column 1)"),
        ("[" * 100_000, "is nested too deeply"),
        ("[]", "must be a JSON object"),
        ('{"schema": "phasewatch.champion/9", "history": []}', "has schema"),
    ],
    ids=lambda value: value[:20],
)
def test_a_damaged_pointer_is_not_taken_for_none(lab: Lab, text: str, why: str) -> None:
    (lab.workspace.champion_folder / "champion.json").write_text(text)
    for command in (["champion"], ["rollback"], ["promote", "gbt"]):
        told = phasewatch(lab, *command)
        assert told.exit_code == FAILED
        assert f"champion.json: cannot be used: it {why}" in told.output


# --- in Dagster


def test_the_asset_judges_and_promotes_only_where_told_to(lab: Lab) -> None:
    result = challenge(lab, challenger="knn", promote=True)
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    accept = ACCEPT[1]
    result = challenge(lab, challenger="knn", accept_alarms=accept)
    (check,) = result.get_asset_check_evaluations()
    assert check.passed
    assert materialized(result)["champion"]["number"] == 1
    assert "may be promoted: phasewatch promote knn" in (check.description or "")
    assert check.metadata["difference_low_host"].value > 0

    result = challenge(lab, challenger="knn", promote=True, accept_alarms=accept)
    assert materialized(result)["champion"]["number"] == 2
    assert materialized(result)["champion"]["accepted_alarms"]["why"] == accept
    result = challenge(lab)  # the best on validation is champion: nothing to complain of
    (check,) = result.get_asset_check_evaluations()
    assert check.passed


def challenge(lab: Lab, **config: Any) -> dg.ExecuteInProcessResult:
    result = (
        build_defs(workspace=lab.workspace)
        .resolve_job_def("challenge")
        .execute_in_process(
            run_config=QUIET | {"ops": {"champion": {"config": config}}},
            instance=lab.instance,
            raise_on_error=False,
        )
    )
    assert result.success, failure(result)
    return result


def test_scoring_uses_the_champion(lab: Lab) -> None:
    batch = next(iter(lab.workspace.listing().batches))
    result = lab.execute("score", batch)
    assert result.success, failure(result)
    reign = read_champion(lab.workspace.champion_folder)
    assert reign is not None
    metadata = materialized(result)["predictions"]
    assert metadata["checkpoint_id"] == reign.checkpoints["time"]
    scores = pl.read_parquet(next(Path(metadata["path"]).glob("*.parquet")))
    training = set(read_training(lab.workspace.champion_folder, reign, "time")["episode_id"])
    assert set(scores.filter("seen_in_training")["episode_id"]) == training & set(
        scores["episode_id"]
    )

    half = {"ops": {"predictions": {"config": {"recipe": "host"}}}}
    assert "set model" in failure(lab.execute("score", batch, config=half))
    shutil.rmtree(lab.workspace.champion_folder)
    refused = lab.execute("score", batch)
    assert not refused.success
    assert "there is no champion to score with" in failure(refused)
    assert "phasewatch promote" in failure(refused)
