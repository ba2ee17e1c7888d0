"""Calibration against hand-made bins and scikit-learn, and a temperature against a search."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from held_out import CLASSES, GOOD, WINDOWS, K, predictions, report_on
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from evaluation.bootstrap import EpisodeBootstrap
from evaluation.calibration import (
    calibration,
    equal_mass_bins,
    fit_temperature,
    log_proba,
    scale,
)
from evaluation.documents import Subject
from evaluation.scores import SHORTCUTS, SplitPredictions, split_predictions

SUBJECT = Subject(
    model="gbt", mode="realistic", checkpoint_id="c", recipe="host", dataset_version="d"
)


def soft(seed: int = 0, sharpness: float = 1.0, split: str = "test") -> SplitPredictions:
    """A predictor whose probabilities are right about themselves at sharpness 1."""
    random = np.random.default_rng(seed)
    true = random.dirichlet(np.full(K, 0.7), len(WINDOWS))
    actual = [CLASSES[random.choice(K, p=p)] for p in true]
    told = true**sharpness
    told /= told.sum(axis=1, keepdims=True)
    windows = [w | {"actual": a} for w, a in zip(WINDOWS, actual, strict=True)]
    table = predictions(windows, {"gbt": actual}).sort("mode", "split", "episode_id", "window")
    columns = [pl.Series(f"p_{c}", np.tile(told[:, i], 4)) for i, c in enumerate(CLASSES)]
    return split_predictions(table.with_columns(columns), "gbt", "realistic", CLASSES, split)


def plain(own: SplitPredictions, replicates: int = 200) -> EpisodeBootstrap:
    return EpisodeBootstrap(np.zeros(len(own.episodes), dtype=np.int64), replicates, 0)


def slow_ece(confidence: NDArray, correct: NDArray, of: NDArray) -> float:
    return sum(
        (of == b).mean() * abs(correct[of == b].mean() - confidence[of == b].mean())
        for b in np.unique(of)
    )


def test_bins_have_equal_mass_and_cover_all_windows_in_order():
    confidence = np.random.default_rng(0).random(150)
    bins = equal_mass_bins(confidence)
    np.testing.assert_array_equal(np.bincount(bins.of), [10] * 15)
    assert (np.diff(bins.low) > 0).all()
    assert (bins.high[:-1] < bins.low[1:]).all()
    rank = confidence.argsort().argsort()
    np.testing.assert_array_equal(bins.of, rank // 10)


@pytest.mark.parametrize("confidence", [np.full(40, 0.7), np.repeat([0.5, 0.9], [3, 37]),
                                        np.array([0.3])])  # fmt: skip
def test_equal_confidences_are_in_one_bin(confidence: NDArray):
    bins = equal_mass_bins(confidence)
    assert len(bins.low) == len(np.unique(confidence))
    np.testing.assert_array_equal(bins.low[bins.of], confidence)
    np.testing.assert_array_equal(bins.high, bins.low)


def test_figures_are_those_computed_by_hand():
    own, val = soft(sharpness=2.0), soft(1, sharpness=2.0)
    found = calibration(own, val, plain(own), SUBJECT).model_dump()
    assert found["temperature"]["value"] == pytest.approx(2.0, rel=0.35)
    for name, proba in (
        ("as_trained", own.proba),
        ("scaled", scale(own.proba, found["temperature"]["value"])),
    ):
        part = found[name]
        confidence, correct = proba.max(axis=1), proba.argmax(axis=1) == own.actual
        order = np.argsort(confidence)
        of = np.empty(len(order), dtype=int)
        of[order] = np.arange(len(order)) * 15 // len(order)
        assert part["ece"]["value"] == pytest.approx(slow_ece(confidence, correct, of))
        brier = ((proba - np.eye(K)[own.actual]) ** 2).sum(axis=1).mean()
        assert part["brier"]["value"] == pytest.approx(brier)
        assert part["log_loss"]["value"] == pytest.approx(
            log_loss(own.actual, proba, labels=range(K))
        )
        assert sum(b["windows"] for b in part["bins"]) == len(own.actual)
        for b, row in enumerate(part["bins"]):
            assert row["confidence"] == pytest.approx(confidence[of == b].mean())
            assert row["accuracy"] == pytest.approx(correct[of == b].mean())
    assert found["scaled"]["log_loss"]["value"] < found["as_trained"]["log_loss"]["value"]
    assert found["scaled"]["ece"]["value"] < found["as_trained"]["ece"]["value"]


def test_intervals_are_those_of_an_explicit_loop():
    own = soft()
    bootstrap = plain(own, 100)
    bins = equal_mass_bins(own.proba.max(axis=1)).of
    correct = own.predicted == own.actual
    eces, losses = [], []
    for weights in np.concatenate(list(bootstrap.weights())).astype(int):
        drawn = np.repeat(np.arange(len(own.actual)), weights[own.episode])
        eces.append(slow_ece(own.proba.max(axis=1)[drawn], correct[drawn], bins[drawn]))
        losses.append(log_loss(own.actual[drawn], own.proba[drawn], labels=range(K)))
    found = calibration(own, own, bootstrap, SUBJECT).as_trained.model_dump()
    for metric, values in (("ece", eces), ("log_loss", losses)):
        bounds = [found[metric]["low"], found[metric]["high"]]
        assert bounds == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist())


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_is_that_of_least_log_loss(sharpness: float):
    own = soft(sharpness=sharpness)
    found = fit_temperature(own.proba, own.actual)
    grid = np.geomspace(0.05, 20, 4001)
    losses = [-log_proba(scale(own.proba, t))[np.arange(120), own.actual].mean() for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_scaling_keeps_what_is_predicted_and_at_one_changes_nothing():
    own = soft()
    np.testing.assert_allclose(scale(own.proba, 1.0), own.proba, atol=1e-6)
    for temperature in (0.2, 5.0):
        scaled = scale(own.proba, temperature)
        np.testing.assert_allclose(scaled.sum(axis=1), 1.0)
        np.testing.assert_array_equal(scaled.argmax(axis=1), own.predicted)
    assert scale(own.proba, 5.0).max() < own.proba.max()


@pytest.mark.filterwarnings("error")
def test_a_temperature_exists_whatever_the_validation():
    even = np.full((8, K), 1 / K)
    assert fit_temperature(even, np.zeros(8, dtype=np.int64)) == 1.0
    assert fit_temperature(np.empty((0, K)), np.empty(0, dtype=np.int64)) == 1.0
    sure = np.eye(K)[[0, 1, 2]]
    assert fit_temperature(sure * 0.4 + 0.15, np.array([0, 1, 2])) == pytest.approx(0.05)
    assert fit_temperature(sure, np.array([1, 2, 0])) == pytest.approx(20.0)


def test_a_temperature_at_the_end_of_the_range_has_a_note():
    by_model = dict.fromkeys(("gbt", *SHORTCUTS), GOOD)
    actual = [w["actual"] for w in WINDOWS]
    right = dict.fromkeys(by_model, actual)
    found = report_on(predictions(WINDOWS, by_model, val=right))["calibration"]
    assert found["temperature"]["note"]["code"] == "temperature_at_limit"
    assert found["temperature"]["split"] == "val"
