"""Figures and intervals: against slow loops and scikit-learn, and what a report has to contain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
from held_out import (
    BAD,
    CLASSES,
    GOOD,
    IDENTITY,
    POLICY,
    TRAINING,
    WINDOWS,
    K,
    check_schema,
    dataset,
    guess,
    predictions,
    report_of,
    report_on,
    side,
    windows_of,
)
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import f1_score, precision_score, recall_score

import evaluation.bootstrap
from evaluation.baselines import baseline_columns, baseline_proba
from evaluation.bootstrap import EpisodeBootstrap
from evaluation.documents import EvalReport
from evaluation.figures import ReportPolicy, interval
from evaluation.page import render_report
from evaluation.scores import (
    BASELINES,
    SHORTCUTS,
    f1_statistic,
    guess_draws,
    guess_weights,
    macro_f1_of_confusion,
    macro_statistic,
    split_predictions,
)
from models.metrics import macro_f1


def confusions(episode: NDArray, actual: NDArray, predicted: NDArray, k: int) -> NDArray[np.int64]:
    """One confusion matrix an episode, by counting."""
    counts = np.zeros((episode.max() + 1, k, k), dtype=np.int64)
    np.add.at(counts, (episode, actual, predicted), 1)
    return counts


# --- picking a predictor


def test_a_predictor_is_picked_from_the_table_whatever_its_order():
    table = predictions(WINDOWS, {"gbt": GOOD, "cnn": BAD})
    own = split_predictions(table, "gbt", "realistic", CLASSES)
    assert [CLASSES[i] for i in own.actual] == [w["actual"] for w in WINDOWS]
    assert [CLASSES[i] for i in own.predicted] == GOOD
    assert own.checkpoint_id == "gbt-realistic"
    assert own.confusion.shape == (12, K, K)
    for number, here in enumerate(own.confusion):
        mine = [i for i, w in enumerate(WINDOWS) if w["episode_id"] == f"E{number:03}"]
        np.testing.assert_array_equal(
            here,
            sklearn_confusion(
                [WINDOWS[i]["actual"] for i in mine], [GOOD[i] for i in mine], labels=CLASSES
            ),
        )


def test_a_predictor_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="no test predictions of knn_oracle"):
        split_predictions(predictions(WINDOWS, {"gbt": GOOD}), "knn", "oracle", CLASSES)


# --- the bootstrap


def plain(n_episodes: int, policy: ReportPolicy = POLICY) -> EpisodeBootstrap:
    """Episodes drawn at once."""
    return EpisodeBootstrap(np.zeros(n_episodes, dtype=np.int64), policy.replicates, policy.seed)


def macro_replicates(bootstrap: EpisodeBootstrap, confusion: NDArray, roster: Sequence[int]) -> Any:
    return bootstrap.replicates_of({"": macro_statistic([confusion], roster)})[""][:, 0]


def weights_of(bootstrap: EpisodeBootstrap) -> NDArray[np.float64]:
    return np.concatenate(list(bootstrap.weights()))


def slow_replicates(
    bootstrap: EpisodeBootstrap,
    episode: NDArray,
    actual: NDArray,
    predicted: NDArray,
    roster: list[int],
) -> list[float]:
    """Put the windows of the drawn episodes together and score them: one replicate by one."""
    scores = []
    for times in weights_of(bootstrap).astype(int):
        drawn = [i for number in range(len(times)) for _ in range(times[number])
                 for i in np.flatnonzero(episode == number)]  # fmt: skip
        present = [c for c in roster if c in actual[drawn]]
        scores.append(
            f1_score(
                actual[drawn], predicted[drawn], labels=present, average="macro", zero_division=0
            )
        )
    return scores


def test_replicates_are_those_of_an_explicit_loop():
    random = np.random.default_rng(0)
    episode = np.repeat(np.arange(6), 8)
    actual = np.where(episode == 5, 3, random.integers(0, 3, 48))  # class 3: one episode's alone
    predicted = np.where(random.random(48) < 0.6, actual, random.integers(0, 4, 48))
    roster = [0, 1, 2, 3]
    bootstrap = plain(6)
    expected = slow_replicates(bootstrap, episode, actual, predicted, roster)
    statistic = f1_statistic(confusions(episode, actual, predicted, 4), roster)
    found = bootstrap.replicates_of({"": statistic})[""]
    np.testing.assert_allclose(found[:, 0], expected)
    assert found.shape == (100, 1 + 3 * 4)
    without_class_3 = np.isnan(found[:, 4])
    np.testing.assert_array_equal(without_class_3, weights_of(bootstrap)[:, 5] == 0)
    assert without_class_3.mean() == pytest.approx((5 / 6) ** 6, abs=0.12)
    low, high = interval(found[:, 0])
    assert (low, high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    whole = bootstrap.observed(statistic)
    for i, score in enumerate((f1_score, precision_score, recall_score)):
        np.testing.assert_allclose(
            whole[1 + 4 * i : 5 + 4 * i],
            score(actual, predicted, labels=roster, average=None, zero_division=0),
        )


def test_every_episode_is_drawn_as_often_as_any_other():
    weights = weights_of(plain(7, ReportPolicy(replicates=4000)))
    assert weights.shape == (4000, 7)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.06)
    np.testing.assert_allclose(weights.var(axis=0), 6 / 7, atol=0.1)


GROUPS = np.array([0, 1, 1, 2, 2, 2, 2])
SIZES = np.array([1, 2, 4])


def test_groups_are_drawn_first_and_their_episodes_anew_at_every_drawing():
    weights = weights_of(EpisodeBootstrap(GROUPS, 20_000, 0))
    by_group = np.stack([weights[:, group == GROUPS].sum(axis=1) for group in range(3)], axis=1)
    drawings = by_group / SIZES
    np.testing.assert_array_equal(drawings, drawings.round())  # a drawn group is drawn whole
    assert (drawings.sum(axis=1) == 3).all()
    np.testing.assert_allclose(drawings.mean(axis=0), 1.0, atol=0.03)
    np.testing.assert_allclose(drawings.var(axis=0), 2 / 3, atol=0.03)
    twice = weights[drawings[:, 1] == 2][:, 1]  # of four drawings from two episodes
    np.testing.assert_allclose(
        np.bincount(twice.astype(int), minlength=5) / len(twice), np.array([1, 4, 6, 4, 1]) / 16,
        atol=0.02,
    )  # fmt: skip


def test_two_stages_are_wider_than_one_where_groups_differ():
    confusion = np.array(
        [np.diag([3, 3]) if g != 1 else np.array([[0, 3], [3, 0]]) for g in GROUPS]
    )
    widths = []
    for group in (GROUPS, np.zeros(7, dtype=np.int64)):
        low, high = interval(macro_replicates(EpisodeBootstrap(group, 2_000, 0), confusion, [0, 1]))
        widths.append(high - low)
    assert widths[0] > 1.2 * widths[1]


def test_a_group_or_a_test_set_without_an_episode_is_refused():
    with pytest.raises(ValueError, match="a group without an episode"):
        EpisodeBootstrap(np.array([0, 2]), 100, 0)
    with pytest.raises(ValueError, match="no episode to resample"):
        EpisodeBootstrap(np.array([], dtype=np.int64), 100, 0)


def test_a_class_of_no_episode_is_not_lacking_if_it_is_not_on_the_roster():
    confusion = np.tile(np.diag([3, 4, 0]), (5, 1, 1))
    assert set(macro_replicates(plain(5), confusion, [0, 1])) == {1.0}


def test_the_interval_follows_from_the_seed():
    own = split_predictions(predictions(WINDOWS, {"gbt": GOOD}), "gbt", "realistic", CLASSES)
    found = [
        interval(macro_replicates(plain(12, ReportPolicy(500, seed)), own.confusion, range(K)))
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("name", "cells"), [("_CELLS", 40), ("_KEPT_CELLS", 0)])
def test_the_pieces_it_is_computed_in_do_not_show(
    name: str, cells: int, monkeypatch: pytest.MonkeyPatch
):
    whole = weights_of(EpisodeBootstrap(GROUPS, 100, 0))
    monkeypatch.setattr(evaluation.bootstrap, name, cells)
    in_pieces = EpisodeBootstrap(GROUPS, 100, 0)
    np.testing.assert_array_equal(weights_of(in_pieces), whole)
    np.testing.assert_array_equal(weights_of(in_pieces), whole)  # and again


def test_fewer_episodes_give_a_wider_interval():
    random = np.random.default_rng(1)
    pool = random.integers(0, 9, (8, 3, 3)) + 6 * np.eye(3, dtype=np.int64)
    widths = []
    for times in (8, 2, 1):
        low, high = interval(
            macro_replicates(plain(8 * times), np.tile(pool, (times, 1, 1)), range(3))
        )
        widths.append(high - low)
    assert widths == sorted(widths)
    assert widths[2] > 2 * widths[0]


def test_resampling_episodes_covers_the_truth_where_resampling_windows_does_not():
    """Windows of an episode are right or wrong together; the truth is the mean share, 0.65."""
    random = np.random.default_rng(7)
    n_episodes, n_windows, n_corpora, truth = 15, 30, 80, 0.65
    covered = {"episodes": 0, "windows": 0}
    for corpus in range(n_corpora):
        share = random.uniform(0.3, 1.0, n_episodes)
        episode = np.repeat(np.arange(n_episodes), n_windows)
        actual = random.integers(0, 2, len(episode))
        predicted = np.where(random.random(len(episode)) < share[episode], actual, 1 - actual)
        for unit, of in (("episodes", episode), ("windows", np.arange(len(episode)))):
            bootstrap = plain(of.max() + 1, ReportPolicy(replicates=100, seed=corpus))
            low, high = interval(
                macro_replicates(bootstrap, confusions(of, actual, predicted, 2), [0, 1])
            )
            covered[unit] += low <= truth <= high
    assert covered["episodes"] / n_corpora > 0.82
    assert covered["windows"] / n_corpora < 0.7


def test_an_interval_leaves_out_what_is_undefined_and_may_be_open():
    assert interval(np.array([np.nan, np.nan])) == pytest.approx((np.nan, np.nan), nan_ok=True)
    assert interval(np.array([1.0, np.nan, 1.0])) == (1.0, 1.0)
    low, high = interval(np.array([3.0] * 90 + [np.inf] * 10))
    assert (low, high) == (3.0, np.inf)


def test_too_few_replicates_are_refused():
    with pytest.raises(ValueError, match="greater than or equal to 100"):
        ReportPolicy(replicates=99)


# --- the report


def test_macro_f1_is_the_mean_over_the_roster():
    report = report_of(WINDOWS, GOOD, BAD, BAD)
    actual = [w["actual"] for w in WINDOWS]
    expected = f1_score(actual, GOOD, labels=CLASSES, average="macro")
    figure = report["macro_f1"]
    assert figure["metric"] == "macro_f1"
    assert figure["level"] == 0.95
    assert figure["value"] == pytest.approx(expected)
    assert figure["low"] < expected < figure["high"]
    assert report["confusion"]["classes"] == list(CLASSES)
    np.testing.assert_array_equal(
        report["confusion"]["counts"], sklearn_confusion(actual, GOOD, labels=CLASSES)
    )
    for row, label in zip(report["per_class"], CLASSES, strict=True):
        one = {"labels": [label], "average": "macro"}
        assert row["name"] == label
        assert row["support"] == actual.count(label)
        assert row["f1"]["value"] == pytest.approx(f1_score(actual, GOOD, **one))
        assert row["precision"]["value"] == pytest.approx(precision_score(actual, GOOD, **one))
        assert row["recall"]["value"] == pytest.approx(recall_score(actual, GOOD, **one))
        for metric in ("f1", "precision", "recall"):
            assert row[metric]["low"] <= row[metric]["value"] <= row[metric]["high"]
            assert row[metric]["where"] == {"class": label}


def test_a_class_that_is_only_predicted_is_not_averaged_in():
    three = windows_of(k=3)
    model = guess(three, 0.5, 1)
    assert "dormant" in model
    report = report_of(three, model, model, model)
    actual = [w["actual"] for w in three]
    expected = f1_score(actual, model, labels=CLASSES[:3], average="macro")
    assert report["macro_f1"]["value"] == pytest.approx(expected)
    for bound in ("value", "low", "high"):
        assert report["baselines"][0]["macro_f1"][bound] == report["macro_f1"][bound]
    assert report["macro_f1"]["low"] < expected < report["macro_f1"]["high"]


@pytest.mark.parametrize(("key", "column"), [("per_profile", "profile"), ("per_host", "host_id")])
def test_groups_are_scored_over_the_classes_that_occur_there(key: str, column: str):
    windows = [
        w
        for w in WINDOWS
        if w["actual"] != "armed" or (w["profile"], w["host_id"][-1]) == ("io-walk", "a")
    ]
    model = guess(windows, 0.5, 1)
    report = report_of(windows, model, model, model)
    assert [row["name"] for row in report[key]] == sorted({w[column] for w in windows})
    assert {row["classes"] for row in report[key]} == {3, 4}
    for row in report[key]:
        here = [i for i, w in enumerate(windows) if w[column] == row["name"]]
        actual, predicted = [windows[i]["actual"] for i in here], [model[i] for i in here]
        present = sorted(set(actual))
        assert row["windows"] == len(here)
        assert row["episodes"] == len({windows[i]["episode_id"] for i in here})
        assert row["classes"] == len(present)
        figure = row["macro_f1"]
        assert figure["where"] == {column: row["name"]}
        assert figure["value"] == pytest.approx(
            f1_score(actual, predicted, labels=present, average="macro", zero_division=0)
        )
        assert figure["low"] < figure["value"] < figure["high"]


def test_what_is_the_same_in_every_resample_has_no_interval():
    truth = [w["actual"] for w in WINDOWS]
    for row in report_of(WINDOWS, truth, truth, truth)["per_class"]:
        for name in ("f1", "precision", "recall"):
            figure = row[name]
            assert (figure["value"], figure["low"], figure["high"]) == (1.0, None, None)
            assert figure["note"]["code"] == "constant"


def test_three_episodes_are_too_few_for_an_interval():
    windows = windows_of(11)  # four, four and three of the profiles
    model = guess(windows, 0.5, 1)
    report = report_of(windows, model, model, model)
    figures = {row["name"]: row["macro_f1"] for row in report["per_profile"]}
    few = figures.pop("fork-churn")
    assert (few["low"], few["high"]) == (None, None)
    assert few["note"]["code"] == "too_few_episodes"
    assert all(figure["low"] < figure["high"] for figure in figures.values())


def test_the_difference_to_a_baseline_is_paired():
    report = report_of(WINDOWS, GOOD, BAD, GOOD)
    position, missingness = report["baselines"][:2]
    assert [position["name"], missingness["name"]] == list(SHORTCUTS)
    episode = np.array([int(w["episode_id"][1:]) for w in WINDOWS])
    actual, good, bad = (
        np.array([CLASSES.index(c) for c in labels])
        for labels in ([w["actual"] for w in WINDOWS], GOOD, BAD)
    )
    paired = np.subtract(
        *(slow_replicates(plain(12), episode, actual, told, list(range(K))) for told in (good, bad))
    )
    difference = position["difference"]
    assert difference["value"] == pytest.approx(
        macro_f1(actual, good, K) - macro_f1(actual, bad, K)
    )
    assert [difference["low"], difference["high"]] == pytest.approx(
        np.quantile(paired, [0.025, 0.975]).tolist()
    )
    assert position["macro_f1"]["value"] == pytest.approx(macro_f1(actual, bad, K))
    assert position["macro_f1"]["model"] == difference["other"]["model"] == "position_only"


def warned(report: dict[str, Any], code: str, about: str | None = None) -> dict[str, float] | None:
    """The numbers of a warning; None where there is none of that code about that."""
    numbers = [w["numbers"] for w in report["warnings"] if (w["code"], w["about"]) == (code, about)]
    assert len(numbers) < 2
    return numbers[0] if numbers else None


def test_a_model_that_predicts_what_a_baseline_does_is_warned_of():
    report = report_of(WINDOWS, GOOD, GOOD, BAD)
    difference = report["baselines"][0]["difference"]
    assert difference["value"] == difference["low"] == difference["high"] == 0.0
    equal = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert warned(report, "not_better_than_baseline", "position_only") == equal
    assert warned(report, "not_better_than_baseline", "missingness_only") is None


def test_a_model_that_beats_the_baselines_is_not_warned_of():
    codes = [w["code"] for w in report_of(WINDOWS, GOOD, BAD, BAD)["warnings"]]
    assert codes == ["provisional_threshold"]  # on two clean minutes
    report = report_of(WINDOWS, BAD, BAD, GOOD)
    numbers = warned(report, "not_better_than_baseline", "missingness_only")
    assert numbers is not None
    assert numbers["high"] < 0


FACTS = {
    "store": "store", "episodes": 12, "verdicts": {"accepted": 12}, "code_commit": "k" * 40,
    "generated_from": ["d" * 64], "left_out": [], "behind": {}, "champion": None, "accepted": None,
    "unavailable": {}, "not_compared": 0, "since": None, "fault": "", "made": "2026-11-25",
    "tables": ["figures"], "history": [],
}  # fmt: skip
THREE = windows_of(k=3)  # without dormant
ONE_EPISODE = windows_of(n_episodes=1)
ONE_WINDOW = windows_of(n_episodes=1, n_windows=1)
CASES: dict[str, tuple[list[dict], list[str]]] = {
    "all_is_there": (WINDOWS, GOOD),
    "a_class_is_absent": (THREE, guess(THREE, 0.8, 1)),
    "a_class_is_never_said": (WINDOWS, [c if c != "dormant" else "clean" for c in GOOD]),
    "one_class_is_always_said": (WINDOWS, ["clean"] * len(WINDOWS)),
    "nothing_is_right": (WINDOWS, [CLASSES[CLASSES.index(w["actual"]) - 1] for w in WINDOWS]),
    "everything_is_right": (WINDOWS, [w["actual"] for w in WINDOWS]),
    "one_episode": (ONE_EPISODE, guess(ONE_EPISODE, 0.8, 1)),
    "one_window": (ONE_WINDOW, ["armed"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error")
def test_a_report_is_plain_json_with_every_field_that_the_page_shows(case: str):
    windows, model = CASES[case]
    other = ["clean"] * len(windows)
    report = report_of(
        windows, model, other, other, tested_profiles=["io-walk"], untested_profiles=["fork-churn"]
    )
    check_schema(report)
    roster = [c for c in CLASSES if c in {w["actual"] for w in windows}]
    assert report["roster"] == [row["name"] for row in report["per_class"]] == roster
    assert report["absent_classes"] == [c for c in CLASSES if c not in roster]
    assert report["n_windows"] == len(windows)
    assert report["n_episodes"] == len({w["episode_id"] for w in windows})
    assert [b["name"] for b in report["baselines"]] == list(BASELINES)
    assert warned(report, "untested_profile", "fork-churn") == {}
    for label in report["absent_classes"]:
        assert warned(report, "absent_class", label) == {}
    assert "fork-churn" in render_report([EvalReport.model_validate(report)], FACTS)


def test_a_report_says_of_what_it_speaks():
    report = report_of(WINDOWS, GOOD, BAD, BAD)
    assert report["schema"] == "phasewatch.eval_report/9"
    assert (report["model"], report["mode"], report["split"]) == ("gbt", "realistic", "test")
    assert report["checkpoint_id"] == "gbt-realistic"
    assert {name: report[name] for name in IDENTITY} == IDENTITY
    condition = report["bootstrap"].pop("conditional_on")
    assert report["bootstrap"] == {
        "unit": "episode", "stages": ["episode"], "replicates": 100, "seed": 3,
        "replicates_lacking_a_class": report["macro_f1"]["left_out"],
    }  # fmt: skip
    assert condition == {"unit": "host", "n": 2, "names": ["lab-a", "lab-b"]}
    assert report["learning_curve"]["rows"] == TRAINING["history"]
    assert report["learning_curve"]["best_step"] == 2
    assert report["excluded_episodes"] == {"degraded": 2}


def figures_in(document: Any) -> list[dict[str, Any]]:
    """Every figure of a document, wherever it is."""
    if isinstance(document, dict):
        here = [document] if "metric" in document else []
        return here + [f for value in document.values() for f in figures_in(value)]
    return (
        [f for value in document for f in figures_in(value)] if isinstance(document, list) else []
    )


def test_every_figure_can_be_quoted_by_itself():
    report = report_of(WINDOWS, GOOD, BAD, BAD)
    found = figures_in(report)
    assert len(found) > 30
    names = ("metric", "model", "mode", "recipe", "split", "dataset_version", "checkpoint_id")
    said = [(*(f[n] for n in names), *f["where"].items(), str(f.get("other"))) for f in found]
    assert len(said) == len(set(said))
    assert {f["mode"] for f in found} == {"realistic"}
    assert {f["dataset_version"] for f in found} == {IDENTITY["dataset_version"]}
    chosen = {f["metric"] for f in found if f["split"] == "val"}
    assert chosen == {"macro_f1", "temperature", "alarm_threshold", "false_alarms_per_hour"}


def test_in_recipe_sample_samples_are_drawn_first():
    by_model = dict.fromkeys(("gbt", *SHORTCUTS), GOOD)
    report = report_on(predictions(WINDOWS, by_model), recipe="sample")
    assert report["bootstrap"]["stages"] == ["sample", "episode"]
    assert report["bootstrap"]["conditional_on"]["n"] == 5
    assert report["bootstrap"]["conditional_on"]["names"] == [f"s.v{i}" for i in range(5)]
    other = report_on(predictions(WINDOWS, by_model), recipe="host")
    assert report["macro_f1"]["value"] == other["macro_f1"]["value"]
    assert report["macro_f1"]["low"] != other["macro_f1"]["low"]


def test_in_recipe_time_the_period_is_named():
    by_model = dict.fromkeys(("gbt", *SHORTCUTS), GOOD)
    report = report_on(predictions(WINDOWS, by_model), recipe="time")
    condition = report["bootstrap"]["conditional_on"]
    assert (condition["unit"], condition["n"]) == ("period", 1)
    assert condition["names"] == ["2023-11-14 22:13 to 2023-11-14 22:31 UTC"]


def test_validation_decides_nothing_but_what_is_chosen_on_it():
    by_model = dict.fromkeys(("gbt", *SHORTCUTS), GOOD)
    one = report_on(predictions(WINDOWS, by_model))
    other = report_on(predictions(WINDOWS, by_model, val=dict.fromkeys(by_model, BAD)))
    assert one["val_macro_f1"]["value"] > other["val_macro_f1"]["value"]
    for key in ("macro_f1", "per_class", "per_profile", "baselines", "confusion"):
        assert one[key] == other[key]
    assert one["calibration"]["as_trained"] == other["calibration"]["as_trained"]
    assert one["calibration"]["scaled"] != other["calibration"]["scaled"]


def test_the_timeline_is_of_the_episode_with_the_most_phases_then_windows_then_first():
    def timeline(*phases: Sequence[str]) -> dict[str, Any]:
        windows = [
            WINDOWS[0] | {"episode_id": f"E{i}", "window": w, "start_s": 5.0 * w, "actual": phase}
            for i, episode in enumerate(phases)
            for w, phase in enumerate(episode)
        ]
        other = ["clean"] * len(windows)
        return report_of(windows, other, other, other)["timeline"]

    assert timeline(["clean"] * 4, ["clean", "armed"])["episode_id"] == "E1"
    assert timeline(["clean", "armed"], ["clean", "armed", "armed"])["episode_id"] == "E1"
    found = timeline(["clean"], ["clean", "armed"], ["armed", "clean"])
    assert found["episode_id"] == "E1"
    assert found["actual"] == ["clean", "armed"]
    assert found["start_s"] == [0.0, 5.0]
    assert found["proba"]["clean"] == [0.7, 0.7]


def test_equal_predictions_give_an_equal_report():
    assert report_of(WINDOWS, GOOD, BAD, BAD) == report_of(WINDOWS, GOOD, BAD, BAD)


def test_synthetic_episodes_are_warned_of():
    splits = dataset()["splits"]
    splits["val"] = splits["val"] | {"synthetic_episodes": 3}
    report = report_of(WINDOWS, GOOD, BAD, BAD, splits=splits)
    assert warned(report, "synthetic_episodes") == {"episodes": 3}


# --- baselines


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller forest: what it sees does not depend on its size."""
    smaller = lambda _, **how: RandomForestClassifier(20, **(how | {"n_jobs": 1}))  # noqa: E731
    monkeypatch.setattr("sklearn.ensemble.RandomForestClassifier", smaller)


def expected_of_guessing(actual: list[int], weights: Sequence[float]) -> float:
    """Mean macro F1 over every possible way to guess, by its probability."""
    k = len(weights)
    share = np.array(weights) / sum(weights)
    return sum(
        float(np.prod(share[list(told)])) * macro_f1(np.array(actual), np.array(told), k)
        for told in product(range(k), repeat=len(actual))
    )


@pytest.mark.parametrize("actual", [[0], [0, 1], [0, 0, 1, 2], [1, 1, 1, 1, 2]])
@pytest.mark.parametrize("name", ["uniform", "prior"])
def test_guessing_scores_what_all_possible_guesses_score_on_average(name: str, actual: list[int]):
    counts = {"clean": 6, "armed": 3, "infected_running": 1}
    facts = dataset(splits={"train": side(**counts)})
    weights = list(counts.values()) if name == "prior" else [1, 1, 1]
    weights_drawn = guess_weights(name, facts, CLASSES[:3])
    draws = guess_draws(np.array(actual), weights_drawn, seed=0, n_draws=20_000)
    assert draws.mean() == pytest.approx(expected_of_guessing(actual, weights), abs=0.01)


def test_guessing_follows_from_the_seed():
    actual = np.array([0, 1, 2, 3] * 5)
    one, again, other = (
        guess_draws(actual, guess_weights("uniform", dataset(), CLASSES), seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def table_of(n: int = 120, seed: int = 0) -> pl.DataFrame:
    """Windows whose class follows from ``start_s``, and whether netflow ran from the class."""
    random = np.random.default_rng(seed)
    code = np.arange(n) % 3
    return pl.DataFrame(
        {
            "split": np.array(["train", "train", "val", "test"])[np.arange(n) % 4],
            "label": [CLASSES[i] for i in code],
            "start_s": code * 10.0 + random.random(n),
            "coverage_proc": random.random(n),
            "coverage_qmp": random.random(n),
            "coverage_guest": np.ones(n),
            "coverage_netflow": (code == 1).astype(float),
            "window": np.arange(n),
        }
    )


@pytest.mark.parametrize(
    ("name", "mode", "columns"),
    [
        ("position_only", "realistic", ["start_s"]),
        ("position_only", "oracle", ["start_s"]),
        ("missingness_only", "realistic", ["coverage_guest", "coverage_netflow"]),
        (
            "missingness_only",
            "oracle",
            ["coverage_proc", "coverage_qmp", "coverage_guest", "coverage_netflow"],
        ),
    ],
)
@pytest.mark.usefixtures("few_trees")
def test_a_baseline_sees_nothing_but_its_columns(name: str, mode: str, columns: list[str]):
    assert baseline_columns(name, mode) == columns
    table = table_of()
    expected = baseline_proba(table, baseline_columns(name, mode), CLASSES, seed=0)
    blind = table.select("split", "label", *columns)  # all that it needs is there
    np.testing.assert_array_equal(
        baseline_proba(blind, baseline_columns(name, mode), CLASSES, seed=0), expected
    )


def test_an_unknown_baseline_is_refused_by_name():
    with pytest.raises(ValueError, match="one of position_only, missingness_only, got 'prior'"):
        baseline_columns("prior", "oracle")


def accuracy(table: pl.DataFrame, name: str, mode: str = "realistic") -> float:
    proba = baseline_proba(table, baseline_columns(name, mode), CLASSES, seed=0)
    test = table.filter(pl.col("split") != "train")
    assert proba.shape == (len(test), K)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, atol=1e-5)
    assert (proba[:, 3] == 0).all()  # dormant is in no training window
    predicted = [CLASSES[i] for i in proba.argmax(axis=1)]
    return float(np.mean(np.array(predicted) == test["label"].to_numpy()))


@pytest.mark.usefixtures("few_trees")
def test_position_only_learns_a_schedule_and_nothing_else():
    table = table_of()
    assert accuracy(table, "position_only") == 1.0
    elsewhere = pl.Series(np.random.default_rng(1).random(len(table)))
    assert accuracy(table.with_columns(start_s=elsewhere), "position_only") < 0.6


@pytest.mark.usefixtures("few_trees")
def test_missingness_only_learns_which_collectors_ran_and_nothing_else():
    table = table_of()
    assert 0.6 < accuracy(table, "missingness_only") < 0.8  # one class of three, and a guess
    always = table.with_columns(coverage_netflow=pl.lit(1.0))
    assert accuracy(always, "missingness_only") < 0.5


@pytest.mark.usefixtures("few_trees")
def test_a_baseline_is_fitted_on_training_windows_alone():
    table = table_of()
    other = table.with_columns(
        label=pl.when(pl.col("split") != "train").then(pl.lit("clean")).otherwise(pl.col("label"))
    )
    one, two = (baseline_proba(t, ["start_s"], CLASSES, 0) for t in (table, other))
    np.testing.assert_array_equal(one, two)


def test_sums_are_exact_beyond_what_single_precision_holds():
    """The product of weights and counts is in single precision only where that is exact."""
    random = np.random.default_rng(0)
    for factor in (1, 2**20 + 1):
        confusions = [random.integers(1, 9, (40, K, K)) * factor + 1 for _ in range(3)]
        weights = random.poisson(1.0, (20, 40)).astype(np.float64)
        found = macro_statistic(confusions, range(K))(weights)
        whole = weights.astype(np.int64)
        for i, confusion in enumerate(confusions):
            summed = np.einsum("be,eij->bij", whole, confusion)
            np.testing.assert_array_equal(found[:, i], macro_f1_of_confusion(summed, range(K)))
