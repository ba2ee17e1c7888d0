"""The ensemble: what its trees are given, and what becomes of the members' probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from models.base import Examples
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
    assert rows.shape == (6, 2 * POOLED * 4)
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
