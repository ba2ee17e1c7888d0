"""The ensemble: what its trees are given, and what becomes of the members' probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from live.runtime import build_runtime
from models.base import Classifier, Examples
from models.pooling import POOLED, geometric_mean, pooled
from models.registry import MODELS, model_config

BLOCK = 5


def one_by_one(window: np.ndarray) -> np.ndarray:
    """``pooled`` of one window, column by column."""
    steps = [window[at : at + BLOCK] for at in range(0, len(window), BLOCK)]
    columns = [
        [statistic(values[~np.isnan(values)]) for values in (step[:, c] for step in steps)]
        for statistic in (np.mean, np.std)
        for c in range(window.shape[1])
    ]
    out = []
    for column in columns:
        values = np.array(column)[~np.isnan(column)]
        out.append([f(values) if len(values) else np.nan for f in (np.mean, np.std, np.max)])
    return np.array(out).T.ravel()


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_pooled_window_is_what_became_of_its_steps() -> None:
    random = np.random.default_rng(3)
    X = random.lognormal(2.0, 2.0, (6, 23, 4)).astype(np.float32)  # the last step is cut off
    X[random.random(X.shape) < 0.2] = np.nan
    X[1, 5:15, 2] = np.nan  # two steps without any value
    X[2, :, 0] = np.nan  # a window without any
    X[3, 5:, 1] = np.nan  # a single step
    rows = pooled(X, BLOCK)
    assert rows.shape == (6, POOLED * 4)
    np.testing.assert_allclose(rows, [one_by_one(window) for window in X], rtol=1e-4, atol=1e-5)


def test_a_pooled_window_does_not_depend_on_those_beside_it() -> None:
    X = np.random.default_rng(4).lognormal(2.0, 2.0, (70, 20, 3)).astype(np.float32)
    alone = np.concatenate([pooled(window[None], BLOCK) for window in X])
    np.testing.assert_array_equal(pooled(X, BLOCK), alone)


def test_members_have_an_equal_say() -> None:
    one, other = (
        np.array([[0.8, 0.2, 0.0], [1.0, 0.0, 0.0]]),
        np.array([[0.2, 0.8, 0.0], [0, 1, 0]]),
    )
    mean = geometric_mean([one.astype(np.float32), other.astype(np.float32)])
    np.testing.assert_allclose(mean, [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], atol=2e-3)
    np.testing.assert_allclose(mean.sum(axis=1), 1.0, atol=1e-6)


def test_it_is_its_members_mean() -> None:
    random = np.random.default_rng(5)
    X = random.lognormal(1.0, 1.0, (60, 20, 3)).astype(np.float32)
    y = np.arange(60) % 3
    X[y == 1, :, 0] *= 9
    X[y == 2, 10:, 1] *= 9
    config = model_config(
        "ensemble", {"width": 8, "n_heads": 2, "epochs": 4, "trees": {"n_rounds": 9}}
    )
    model = MODELS["ensemble"].build(config, 3, device="cpu").fit(Examples(X, y))
    net = MODELS["transformer"].build(
        model_config("transformer", {"width": 8, "n_heads": 2, "epochs": 4}), 3, device="cpu"
    )
    trees = MODELS["gbt"].build(
        model_config("gbt", {"n_rounds": 9, "n_threads": 1}), 3, device="cpu"
    )
    rows = pooled(X, config.block_bins)
    members = [
        net.fit(Examples(X, y)).predict_proba(X),
        trees.fit(Examples(rows, y)).predict_proba(rows),
    ]
    np.testing.assert_allclose(model.predict_proba(X), geometric_mean(members), atol=1e-6)


SETTINGS = {"width": 8, "n_heads": 2, "epochs": 8, "trees": {"n_rounds": 40}}


def build() -> Classifier:
    return MODELS["ensemble"].build(model_config("ensemble", SETTINGS), 2, device="cpu")


def made_by(channel: int) -> Examples:
    """Windows without gaps, the second class by one channel alone."""
    X = np.random.default_rng(6).lognormal(1.0, 0.3, (240, 20, 4)).astype(np.float32)
    y = np.arange(240) % 2
    X[y == 1, :, channel] *= 3
    return Examples(X, y)


def test_what_argues_for_a_phase_is_the_channel_that_makes_it() -> None:
    """Also where nothing was ever missing, so that trees have not learned what missing means."""
    train, again = made_by(2), build()
    model = build().fit(train)
    again.restore(model.to_sidecar(), 4, model.standardize_)
    for fitted in (model, again):
        found = fitted.contributions(train.X, np.arange(4))
        assert (found.argmax(axis=1) == 2).mean() > 0.95
        assert found[:, 2].min() > 0


def test_a_device_explains_as_training_does() -> None:
    train = made_by(1)
    model = build().fit(train)
    exported = model.exported(20)
    runtime = build_runtime(exported.kind, exported.content, model.standardize_, 2, 4)
    proba = model.predict_proba(train.X)
    np.testing.assert_allclose(runtime.proba(train.X[:]), proba, atol=1e-5)
    found = runtime.arguments(train.X[1], np.arange(4), np.array([False, True]))
    assert found.argmax() == 1
    [without] = model._proba_without(train.X[1:2], np.arange(4) == 1)
    odds = np.log(proba[1, 1] / proba[1, 0]) - np.log(without[1] / without[0])
    np.testing.assert_allclose(found[1], odds, rtol=1e-3, atol=1e-4)


def test_rows_that_do_not_fit_in_memory_give_the_same_trees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = made_by(3)

    def learned() -> tuple[bytes, bytes]:
        model: Any = build().fit(train, train)
        return model.trees_.to_sidecar(), model.typical_.tobytes()

    expected = learned()
    monkeypatch.setattr("models.ensemble._IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("models.ensemble._BLOCK", 7)
    assert learned() == expected
