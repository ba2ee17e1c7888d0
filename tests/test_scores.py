"""Figures and intervals: against slow loops and scikit-learn, and what a report has to contain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import f1_score, precision_score, recall_score

import evaluation.baselines
import evaluation.scores
from evaluation.baselines import baseline_columns, baseline_proba
from evaluation.report import render_report
from evaluation.scores import (
    SHORTCUTS,
    EpisodeBootstrap,
    ReportPolicy,
    evaluate,
    interval,
    random_baseline,
    scored,
)
from models.metrics import macro_f1

CLASSES = ("clean", "armed", "infected_running", "dormant")
POLICY = ReportPolicy(replicates=100, seed=3)
K = len(CLASSES)


# --- made-up predictions


def windows_of(n_episodes: int = 12, n_windows: int = 10, k: int = K, seed: int = 0) -> list[dict]:
    """The windows of a test set, all in all with every one of ``k`` classes."""
    random = np.random.default_rng(seed)
    return [
        {
            "episode_id": f"E{episode:03}",
            "host_id": f"lab-{'ab'[episode % 2]}",
            "profile": ("io-walk", "cpu-saturate", "fork-churn")[episode % 3],
            "window": window,
            "actual": CLASSES[(episode + window) % k if window < 2 else random.integers(k)],
        }
        for episode in range(n_episodes)
        for window in range(n_windows)
    ]


def guess(windows: list[dict], right: float, seed: int) -> list[str]:
    """Predictions that are right with a probability that differs from episode to episode."""
    random = np.random.default_rng(seed)
    share = {w["episode_id"]: min(1.0, right * random.uniform(0.5, 1.5)) for w in windows}
    return [
        w["actual"] if random.random() < share[w["episode_id"]] else CLASSES[random.integers(K)]
        for w in windows
    ]


def predictions(windows: list[dict], by_model: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """The table of test predictions: what ``by_model`` predicts, and other modes' nonsense."""
    rows = [
        window
        | {"model": model, "mode": mode, "checkpoint_id": f"{model}-{mode}"}
        | {f"p_{c}": (0.7 if c == predicted else 0.1) for c in CLASSES}
        for model, predicted_classes in by_model.items()
        for mode in ("realistic", "oracle")
        for window, predicted in zip(
            windows,
            predicted_classes if mode == "realistic" else ["clean"] * len(windows),
            strict=True,
        )
    ]
    return pl.DataFrame(rows).sample(fraction=1.0, shuffle=True, seed=0)


def side(**windows_by_phase: int) -> dict[str, Any]:
    return {
        "windows": sum(windows_by_phase.values()), "episodes": 12, "hosts": ["lab-a"],
        "samples": ["io-walk.v0"], "synthetic_episodes": 0, "windows_by_phase": windows_by_phase,
        "coverage": {"guest": 0.9, "netflow": 1.0},
    }  # fmt: skip


def dataset(**changes: Any) -> dict[str, Any]:
    return {
        "recipe": "host",
        "splits": {
            "train": side(clean=60, armed=20, infected_running=15, dormant=5),
            "val": side(clean=5),
            "test": side(clean=9),
        },
        "profiles": ["cpu-saturate", "fork-churn", "io-walk"],
        "tested_profiles": ["cpu-saturate", "fork-churn", "io-walk"],
        "untested_profiles": [],
        "excluded": {"degraded": 2},
    } | changes


IDENTITY = {
    "recipe": "host", "dataset_version": "d" * 64, "contract_hash": "c" * 64,
    "schema_hash": "s" * 64, "validation_index_digest": "v" * 64, "code_commit": "k" * 40,
    "val_macro_f1": 0.9,
}  # fmt: skip
WINDOWS = windows_of()
GOOD, BAD = guess(WINDOWS, 0.8, 1), guess(WINDOWS, 0.1, 2)


def report_of(
    windows: list[dict],
    model: Sequence[str],
    position: Sequence[str],
    missingness: Sequence[str],
    policy: ReportPolicy = POLICY,
    **facts: Any,
) -> dict[str, Any]:
    by_model = {"gbt": model, "position_only": position, "missingness_only": missingness}
    table = predictions(windows, by_model)
    return evaluate(table, "gbt", "realistic", CLASSES, dataset(**facts), IDENTITY, policy)


def confusions(episode: NDArray, actual: NDArray, predicted: NDArray, k: int) -> NDArray[np.int64]:
    """One confusion matrix an episode, by counting."""
    counts = np.zeros((episode.max() + 1, k, k), dtype=np.int64)
    np.add.at(counts, (episode, actual, predicted), 1)
    return counts


# --- picking a predictor


def test_a_predictor_is_picked_from_the_table_whatever_its_order():
    table = predictions(WINDOWS, {"gbt": GOOD, "cnn": BAD})
    own = scored(table, "gbt", "realistic", CLASSES)
    assert [CLASSES[i] for i in own.actual] == [w["actual"] for w in WINDOWS]
    assert [CLASSES[i] for i in own.predicted] == GOOD
    assert own.checkpoint_id == "gbt-realistic"
    assert own.per_episode.shape == (12, K, K)
    for number, here in enumerate(own.per_episode):
        mine = [i for i, w in enumerate(WINDOWS) if w["episode_id"] == f"E{number:03}"]
        np.testing.assert_array_equal(
            here,
            sklearn_confusion(
                [WINDOWS[i]["actual"] for i in mine], [GOOD[i] for i in mine], labels=CLASSES
            ),
        )


def test_a_predictor_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="no test predictions of knn_oracle"):
        scored(predictions(WINDOWS, {"gbt": GOOD}), "knn", "oracle", CLASSES)


# --- the bootstrap


def slow_replicates(
    episode: NDArray, actual: NDArray, predicted: NDArray, roster: list[int], policy: ReportPolicy
) -> list[float]:
    """Draw episodes with replacement, put their windows together, score: one by one."""
    n = episode.max() + 1
    random = np.random.default_rng(policy.seed)
    scores = []
    for times in random.multinomial(n, np.full(n, 1 / n), size=policy.replicates):
        drawn = [i for number in range(n) for _ in range(times[number])
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
    expected = slow_replicates(episode, actual, predicted, roster, POLICY)
    per_episode = confusions(episode, actual, predicted, 4)
    macro, by_class, lacking = EpisodeBootstrap(6, POLICY).macro_f1(per_episode, roster)
    np.testing.assert_allclose(macro, expected)
    assert by_class.shape == (100, 4)
    without_class_3 = np.isnan(by_class[:, 3]).sum()
    assert lacking == np.isnan(by_class).any(axis=1).sum() >= without_class_3
    assert without_class_3 / 100 == pytest.approx((5 / 6) ** 6, abs=0.12)
    low, high = interval(macro)
    assert (low, high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))


def test_a_class_of_no_episode_is_not_lacking_if_it_is_not_on_the_roster():
    per_episode = np.tile(np.diag([3, 4, 0]), (5, 1, 1))
    macro, _, lacking = EpisodeBootstrap(5, POLICY).macro_f1(per_episode, [0, 1])
    assert lacking == 0
    assert set(macro) == {1.0}


def test_the_interval_follows_from_the_seed():
    per_episode = scored(predictions(WINDOWS, {"gbt": GOOD}), "gbt", "realistic", CLASSES)
    found = [
        interval(
            EpisodeBootstrap(12, ReportPolicy(500, seed)).macro_f1(
                per_episode.per_episode, range(K)
            )[0]
        )
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_the_pieces_it_is_computed_in_do_not_show(monkeypatch: pytest.MonkeyPatch):
    per_episode = np.random.default_rng(0).integers(0, 5, (7, 3, 3))
    whole = EpisodeBootstrap(7, POLICY).macro_f1(per_episode, range(3))
    monkeypatch.setattr(evaluation.scores, "_CHUNK", 33)
    in_pieces = EpisodeBootstrap(7, POLICY).macro_f1(per_episode, range(3))
    np.testing.assert_array_equal(whole[0], in_pieces[0])
    assert whole[2] == in_pieces[2]


def test_fewer_episodes_give_a_wider_interval():
    random = np.random.default_rng(1)
    pool = random.integers(0, 9, (8, 3, 3)) + 6 * np.eye(3, dtype=np.int64)
    widths = []
    for times in (8, 2, 1):
        per_episode = np.tile(pool, (times, 1, 1))
        macro, _, _ = EpisodeBootstrap(8 * times, POLICY).macro_f1(per_episode, range(3))
        low, high = interval(macro)
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
            policy = ReportPolicy(replicates=100, seed=corpus)
            macro, _, _ = EpisodeBootstrap(of.max() + 1, policy).macro_f1(
                confusions(of, actual, predicted, 2), [0, 1]
            )
            low, high = interval(macro)
            covered[unit] += low <= truth <= high
    assert covered["episodes"] / n_corpora > 0.82
    assert covered["windows"] / n_corpora < 0.65


def test_too_few_replicates_are_refused():
    with pytest.raises(ValueError, match="99 replicates; take at least 100"):
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
        assert row["class"] == label
        assert row["support"] == actual.count(label)
        assert row["f1"]["value"] == pytest.approx(f1_score(actual, GOOD, **one))
        assert row["precision"] == pytest.approx(precision_score(actual, GOOD, **one))
        assert row["recall"] == pytest.approx(recall_score(actual, GOOD, **one))
        assert row["f1"]["low"] <= row["f1"]["value"] <= row["f1"]["high"]


def test_a_class_that_is_only_predicted_is_not_averaged_in():
    three = windows_of(k=3)
    model = guess(three, 0.5, 1)
    assert "dormant" in model
    report = report_of(three, model, model, model)
    actual = [w["actual"] for w in three]
    expected = f1_score(actual, model, labels=CLASSES[:3], average="macro")
    assert report["macro_f1"]["value"] == pytest.approx(expected)
    assert report["baselines"][0]["macro_f1"] == report["macro_f1"]
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
    assert [row[column] for row in report[key]] == sorted({w[column] for w in windows})
    assert {row["classes"] for row in report[key]} == {3, 4}
    for row in report[key]:
        here = [i for i, w in enumerate(windows) if w[column] == row[column]]
        actual, predicted = [windows[i]["actual"] for i in here], [model[i] for i in here]
        present = sorted(set(actual))
        assert row["windows"] == len(here)
        assert row["episodes"] == len({windows[i]["episode_id"] for i in here})
        assert row["classes"] == len(present)
        assert row["macro_f1"] == pytest.approx(
            f1_score(actual, predicted, labels=present, average="macro", zero_division=0)
        )


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
        *(slow_replicates(episode, actual, told, list(range(K)), POLICY) for told in (good, bad))
    )
    difference = position["difference"]
    assert difference["value"] == pytest.approx(
        macro_f1(actual, good, K) - macro_f1(actual, bad, K)
    )
    assert [difference["low"], difference["high"]] == pytest.approx(
        np.quantile(paired, [0.025, 0.975]).tolist()
    )
    assert position["macro_f1"]["value"] == pytest.approx(macro_f1(actual, bad, K))


def warned(report: dict[str, Any], words: str) -> bool:
    return any(words in line for line in report["warnings"])


def test_a_model_that_predicts_what_a_baseline_does_is_warned_of():
    report = report_of(WINDOWS, GOOD, GOOD, BAD)
    difference = report["baselines"][0]["difference"]
    assert difference["value"] == difference["low"] == difference["high"] == 0.0
    assert warned(report, "Not better than position-only beyond chance")
    assert warned(report, "it may have learned the schedule")
    assert not warned(report, "which collectors ran")


def test_a_model_that_beats_the_baselines_is_not_warned_of():
    assert report_of(WINDOWS, GOOD, BAD, BAD)["warnings"] == []
    report = report_of(WINDOWS, BAD, BAD, GOOD)
    assert warned(report, "Not better than missingness-only")
    assert warned(report, "it may have learned which collectors ran")


FIELDS = {
    "schema", "model", "mode", "split", "checkpoint_id", *IDENTITY, "classes", "roster",
    "absent_classes", "tested_profiles", "untested_profiles", "n_windows", "n_episodes", "splits",
    "excluded_episodes", "bootstrap", "macro_f1", "per_class", "per_profile", "per_host",
    "confusion", "baselines", "warnings",
}  # fmt: skip
FACTS = {
    "store": "store", "episodes": 12, "verdicts": {"accepted": 12}, "code_commit": "k" * 40,
    "generated_from": ["d" * 64],
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
    assert report.keys() == FIELDS
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    roster = [c for c in CLASSES if c in {w["actual"] for w in windows}]
    assert report["roster"] == [row["class"] for row in report["per_class"]] == roster
    assert report["absent_classes"] == [c for c in CLASSES if c not in roster]
    assert report["n_windows"] == len(windows)
    assert report["n_episodes"] == len({w["episode_id"] for w in windows})
    assert [b["name"] for b in report["baselines"]] == [*SHORTCUTS, "prior", "uniform"]
    assert warned(report, "Profile fork-churn was never tested")
    for label in report["absent_classes"]:
        assert warned(report, f"Phase {label} is absent from the test set")
    assert "fork-churn" in render_report([report], FACTS)


def test_a_report_says_of_what_it_speaks():
    report = report_of(WINDOWS, GOOD, BAD, BAD)
    assert report["schema"] == "phasewatch.eval_report/1"
    assert (report["model"], report["mode"], report["split"]) == ("gbt", "realistic", "test")
    assert report["checkpoint_id"] == "gbt-realistic"
    assert {name: report[name] for name in IDENTITY} == IDENTITY
    assert report["bootstrap"] == {
        "unit": "episode", "replicates": 100, "seed": 3,
        "replicates_lacking_a_class": report["macro_f1"]["left_out"],
    }  # fmt: skip
    assert report["excluded_episodes"] == {"degraded": 2}


def test_equal_predictions_give_an_equal_report():
    assert report_of(WINDOWS, GOOD, BAD, BAD) == report_of(WINDOWS, GOOD, BAD, BAD)


def test_synthetic_episodes_are_said():
    splits = dataset()["splits"]
    splits["val"] = splits["val"] | {"synthetic_episodes": 3}
    report = report_of(WINDOWS, GOOD, BAD, BAD, splits=splits)
    assert warned(report, "3 synthetic episodes are part of this dataset.")


# --- baselines


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller forest: what it sees does not depend on its size."""
    smaller = lambda _, **how: RandomForestClassifier(20, **(how | {"n_jobs": 1}))  # noqa: E731
    monkeypatch.setattr(evaluation.baselines, "RandomForestClassifier", smaller)


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
    draws = random_baseline(np.array(actual), name, facts, CLASSES[:3], seed=0, n_draws=20_000)
    assert draws.mean() == pytest.approx(expected_of_guessing(actual, weights), abs=0.01)


def test_guessing_follows_from_the_seed():
    actual = np.array([0, 1, 2, 3] * 5)
    one, again, other = (
        random_baseline(actual, "uniform", dataset(), CLASSES, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def table_of(n: int = 120, seed: int = 0) -> pl.DataFrame:
    """Windows whose class follows from ``start_s``, and whether netflow ran from the class."""
    random = np.random.default_rng(seed)
    code = np.arange(n) % 3
    return pl.DataFrame(
        {
            "split": np.where(np.arange(n) % 4 == 3, "test", "train"),
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
    with pytest.raises(ValueError, match="no baseline 'prior'; there is position_only, missing"):
        baseline_columns("prior", "oracle")


def accuracy(table: pl.DataFrame, name: str, mode: str = "realistic") -> float:
    proba = baseline_proba(table, baseline_columns(name, mode), CLASSES, seed=0)
    test = table.filter(pl.col("split") == "test")
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
        label=pl.when(pl.col("split") == "test").then(pl.lit("clean")).otherwise(pl.col("label"))
    )
    one, two = (baseline_proba(t, ["start_s"], CLASSES, 0) for t in (table, other))
    np.testing.assert_array_equal(one, two)
