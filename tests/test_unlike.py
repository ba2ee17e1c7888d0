"""Unlike training, and every host in turn: the stages, and what they report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from held_out import CLASSES, GOOD, POLICY, WINDOWS, check_schema, predictions, report_on
from lab import RECIPE, Lab, failure, materialized, put_in_use

import phasewatch
import stages.likeness
from champion import history
from champion.history import ChampionError, likeness_file, load_likeness
from evaluation.documents import HostTurn
from evaluation.likeness import EpisodeLikeness
from evaluation.rotation import host_turn, summarise_turns
from evaluation.wording import unlike_notes
from features.registry import LAYOUT
from models.likeness import ALPHA
from models.registry import find_variant
from stages.datasets import ingested_windows, split_windows
from stages.host_rotation import NETS, best_net, read_rotation
from stages.likeness import read_likeness
from stages.predictions import PredictionsStage, ScoreOptions
from stages.registry import STAGES
from stages.status import StageError

TABLE = predictions(WINDOWS, dict.fromkeys(("gbt", "position_only", "missingness_only"), GOOD))
IDS = sorted({window["episode_id"] for window in WINDOWS})


def likeness_of(n_unlike: int, calibration_episodes: int = 29) -> EpisodeLikeness:
    p = {episode: 1 / 30 if i < n_unlike else 0.5 for i, episode in enumerate(IDS)}
    return EpisodeLikeness("l" * 64, ALPHA, calibration_episodes, p)


# --- figures


@pytest.mark.parametrize("n_unlike", [0, 1, 9, 12])
def test_the_share_of_unlike_episodes_stands_in_the_report(n_unlike: int) -> None:
    report = report_on(TABLE, likeness=likeness_of(n_unlike))
    check_schema(report)
    found = report["unlike"]
    assert (found["alpha"], found["calibration_episodes"]) == (0.1, 29)
    assert found["episodes"] == IDS[:n_unlike]
    share = found["share"]
    assert (share["metric"], share["value"]) == ("unlike_share", n_unlike / 12)
    assert share["low"] <= share["value"] <= share["high"]
    assert (share["note"] is not None) == (n_unlike in (0, 12))
    warned = "unlike_training" in {warning["code"] for warning in report["warnings"]}
    assert warned == (share["low"] > ALPHA) == (n_unlike >= 9)


def test_a_report_without_likeness_says_so() -> None:
    assert report_on(TABLE)["unlike"] is None


def test_promotion_notes_it_and_refuses_nothing() -> None:
    found = {"alpha": 0.1, "calibration_episodes": 25, "test_episodes": 20}
    recipes = {
        "host": {"unlike": found | {"test_episodes_unlike": 5}},
        "time": {"unlike": found | {"test_episodes_unlike": 2}},
        "sample": {"unlike": None},
        "session": {"skipped": "single_session", "found": []},
    }
    (note,) = unlike_notes(recipes)
    assert note.startswith("25.0% of the test episodes of recipe host are unlike training")


# --- the stage


@pytest.mark.parametrize("mode", ["realistic", "oracle"])
def test_the_stage_judges_every_test_episode(mode: str, trained: Lab) -> None:
    manifest = trained.project.existing(f"likeness/{mode}", RECIPE)
    likeness, episodes = read_likeness(manifest), pl.read_parquet(manifest.path("episodes"))
    table = pl.read_parquet(
        next((trained.workspace.artifacts_path / "datasets" / RECIPE).glob("*.parquet"))
    )
    sides = dict(table.group_by("split").agg(pl.col("episode_id").unique()).iter_rows())
    assert set(episodes["episode_id"]) == set(sides["test"])
    assert len(likeness.calibration) == len(sides["val"])
    assert episodes["p"].min() >= likeness.least_p
    facts = trained.recorded(f"likeness/{mode}", RECIPE)
    assert facts["test_episodes_unlike"] == int((episodes["p"] <= ALPHA).sum())
    assert facts["likeness_id"] == likeness.id == manifest.facts["likeness_id"]
    report = json.loads(
        trained.project.existing(f"eval_reports/gbt_{mode}", RECIPE).path("report").read_text()
    )
    assert report["unlike"]["likeness_id"] == likeness.id


def test_predictions_say_it_window_by_window(
    retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = retrained.project
    stage = PredictionsStage(ScoreOptions("gbt", "realistic", RECIPE))
    manifest = project.make(stage, next(iter(project.listing.batches))).artifacts["predictions"]
    table = pl.read_parquet(manifest.path("predictions"))
    assert table["unlike_score"].min() >= 0
    assert (table["unlike"] == (table["unlike_p"] <= ALPHA)).all()
    for _, episode in table.group_by("episode_id"):
        assert (np.diff(episode["unlike_p"].to_numpy()) <= 0).all()
    test = pl.read_parquet(project.existing("likeness/realistic", RECIPE).path("episodes")).select(
        "episode_id", "p"
    )
    last = table.group_by("episode_id").agg(pl.col("unlike_p").last()).join(test, on="episode_id")
    assert len(last)
    assert last["unlike_p"].to_list() == last["p"].to_list()
    loaded = phasewatch.load_checkpoint(project, RECIPE, "gbt")
    for (episode_id,), episode in table.group_by("episode_id"):
        read = phasewatch.read_episode(project, str(episode_id))
        one = phasewatch.predict(project, loaded, read, anyway=True).table()
        same = episode.sort("window")
        for name in ("window", "unlike_p", "unlike"):
            assert one[name].to_list() == same[name].to_list()
        # the last bits of a matrix product depend on how many rows it has
        np.testing.assert_allclose(one["unlike_score"], same["unlike_score"], rtol=1e-9)
    retrained.settings = retrained.settings | {"force": True}
    monkeypatch.setattr("models.likeness.LIMIT", 2.0)
    retrained.project.make(STAGES["likeness/realistic"], RECIPE)
    assert retrained.project.status(stage, next(iter(project.listing.batches))).code == "inputs"


def test_a_champion_keeps_its_likeness(retrained: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.champion.SERVED_RECIPE", RECIPE)
    monkeypatch.setattr("lab.SERVED_RECIPE", RECIPE)
    folder = retrained.workspace.champion_folder
    without = put_in_use(retrained, "gbt")
    assert load_likeness(folder, without, LAYOUT) is None
    found = read_likeness(retrained.project.existing("likeness/realistic", RECIPE))
    champion = replace(without, likeness=found.id)
    kept = load_likeness(folder, champion, LAYOUT)
    assert kept is not None
    assert kept.id == found.id
    loaded = retrained.project.checkpoint(find_variant("gbt", "realistic"), RECIPE)
    shutil.rmtree(retrained.workspace.artifacts_path / "likeness" / RECIPE)
    assert stages.likeness.likeness_of(retrained.project, loaded) is None
    history.put_in_use(folder, champion, replaces=without)
    again = stages.likeness.likeness_of(retrained.project, loaded)
    assert again is not None
    assert again.id == found.id
    other = replace(LAYOUT, channels=LAYOUT.channels[:-1])
    with pytest.raises(ChampionError, match="another input layout"):
        load_likeness(folder, champion, other)
    for path in folder.rglob(likeness_file(found.id)):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ChampionError, match="not a likeness"):
        load_likeness(folder, champion, LAYOUT)


# --- every host in turn


def turn_of(host: str, value: float, alarmed: float | None = 0.0) -> HostTurn:
    return HostTurn(
        host_id=host, episodes=3, windows=30, clean_hours=0.1, attacks=2, provisional=True,
        macro_f1=value, filtered_macro_f1=value, clean_time_alarmed=alarmed, detected_share=1.0,
    )  # fmt: skip


def test_spreads_name_the_worst_host() -> None:
    turns = [turn_of("a", 0.5, None), turn_of("b", 0.8, 0.02), turn_of("c", 0.65, 0.01)]
    model = summarise_turns("gbt", "realistic", turns, "c")
    f1, _, alarmed, found = model.spreads
    assert (f1.mean, f1.worst, f1.worst_host) == (pytest.approx(0.65), 0.5, "a")
    assert (f1.spread, f1.default) == (pytest.approx(0.3), 0.65)
    assert (alarmed.mean, alarmed.worst_host, alarmed.default) == (0.015, "b", 0.01)
    assert (found.metric, found.spread) == ("detected_share", 0.0)
    without = summarise_turns("gbt", "realistic", [turn_of("a", 0.5, None)], "c").spreads[2]
    assert (without.mean, without.worst_host, without.default) == (None, None, None)


def test_a_turn_is_scored_with_a_rule_chosen_without_the_host() -> None:
    training = [[0, 0, 1, 2, 3]] * 3
    turn = host_turn("lab-a", TABLE, "gbt", "realistic", training, CLASSES, POLICY, LAYOUT.window)
    report = report_on(TABLE)
    assert turn.macro_f1 == report["macro_f1"]["value"]
    assert (turn.episodes, turn.windows) == (12, 120)
    assert turn.attacks == report["detection"]["attacked_episodes"]
    assert turn.clean_hours == pytest.approx(report["detection"]["clean_hours"]["test"])
    assert turn.provisional


def test_every_host_is_held_out_once_by_a_job_of_its_own(retrained: Lab) -> None:
    assert best_net(retrained.project) in NETS
    assert not STAGES["host_rotation"].automatic
    retrained.project.make(STAGES["report"], "")
    result = retrained.execute("host_rotation", "")
    assert result.success, failure(result)
    document = read_rotation(retrained.project.existing("host_rotation", ""))
    check_schema(document.model_dump(mode="json"))
    hosts = ["lab-a", "lab-b", "lab-c"]
    assert document.default_host == "lab-c"
    assert [m.model for m in document.models] == ["gbt", best_net(retrained.project).model]
    for model in document.models:
        assert [turn.host_id for turn in model.turns] == hosts
    facts = materialized(result)["host_rotation"]
    assert facts["macro_f1_worst_gbt"] == document.models[0].spreads[0].worst
    assert retrained.project.status(STAGES["host_rotation"], "", verify=True).current
    assert retrained.project.status(STAGES["report"], "").code == "contents"
    listed = next(e for e in retrained.project.listing.episodes if e.host_id == "lab-a")
    entry = {"episode": listed.episode_id, "reason": "wrong label", "who": "me"}
    retrained.workspace.exclusions_file.write_text(json.dumps([entry]))
    assert retrained.project.status(STAGES["host_rotation"], "").code == "exclusions"
    windows, _ = ingested_windows(retrained.project)
    policy = retrained.workspace.splits
    table, _ = split_windows(retrained.project, windows, "host", policy)
    assert listed.episode_id in windows["episode_id"]
    assert listed.episode_id not in table["episode_id"]
    retrained.workspace.exclusions_file.unlink()
    retrained.project.make(STAGES["report"], "")
    page = retrained.workspace.report_page.read_text()
    assert 'id="rotation"' in page
    assert "unlike training" in page


def test_a_rotation_needs_two_hosts_and_trained_nets(ingested: Lab) -> None:
    stage = STAGES["host_rotation"]
    with pytest.raises(StageError, match="No recipe has a checkpoint of every net"):
        ingested.project.make(stage, "")
