"""Trees in NumPy take the leaves that XGBoost takes, and their contributions are its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xgboost as xgb

from models.trees import Trees

N_INPUTS, N_CLASSES = 12, 4


def inputs(n: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    X = np.exp(4 * random.normal(size=(n, N_INPUTS))).astype(np.float32)
    X[random.random(X.shape) < 0.1] = np.nan
    return X


@pytest.fixture(scope="module")
def booster() -> xgb.Booster:
    X = inputs(600, 0)
    y = (np.nan_to_num(X[:, 0]) > 1) + 2 * (np.nan_to_num(X[:, 1], nan=3.0) > X[:, 2])
    parameters = {
        "objective": "multi:softprob", "num_class": N_CLASSES, "max_depth": 5, "nthread": 1,
        "subsample": 0.7, "seed": 1,
    }  # fmt: skip
    return xgb.train(parameters, xgb.DMatrix(X, y), 25)


@pytest.fixture(scope="module")
def trees(booster: xgb.Booster) -> Trees:
    return Trees.from_xgboost(bytes(booster.save_raw("json")))


@pytest.mark.parametrize("n", [1, 2, 7, 1100])
def test_margins_are_equal_to_the_last_bit(booster: xgb.Booster, trees: Trees, n: int):
    X = inputs(n, 2)
    margins = booster.inplace_predict(X, predict_type="margin", missing=np.nan)
    np.testing.assert_array_equal(trees.margins(X), margins)
    np.testing.assert_allclose(trees.proba(X), booster.inplace_predict(X), atol=2e-7)


def test_an_input_on_a_threshold_goes_where_it_goes_in_xgboost(booster: xgb.Booster, trees: Trees):
    inner = np.flatnonzero(trees.left != np.arange(len(trees.left)))
    X = np.broadcast_to(inputs(1, 3), (len(inner), N_INPUTS)).copy()
    X[np.arange(len(inner)), trees.feature[inner]] = trees.threshold[inner]
    margins = booster.inplace_predict(X, predict_type="margin", missing=np.nan)
    np.testing.assert_array_equal(trees.margins(X), margins)


def test_contributions_add_up_to_the_margins(booster: xgb.Booster, trees: Trees):
    X = inputs(40, 4)
    each = trees.contributions(X, np.arange(N_INPUTS))
    np.testing.assert_allclose(
        each.sum(axis=2) + trees.expected_margins, trees.margins(X), atol=1e-5
    )
    theirs = booster.predict(
        xgb.DMatrix(X), pred_contribs=True, approx_contribs=True, strict_shape=True
    )
    np.testing.assert_allclose(each, theirs[:, :, :-1], atol=1e-5)
    in_pairs = trees.contributions(X, np.arange(N_INPUTS) // 2)
    np.testing.assert_allclose(in_pairs, each[:, :, ::2] + each[:, :, 1::2], atol=1e-9)


def test_trees_come_back_from_their_arrays(trees: Trees):
    X = inputs(9, 5)
    again = Trees.from_arrays(trees.arrays())
    np.testing.assert_array_equal(again.margins(X), trees.margins(X))


def test_trees_whose_paths_do_not_end_are_refused(trees: Trees):
    back = trees.left.copy()
    back[trees.left[0]] = 0
    for broken in ({"left": back}, {"group": trees.group + N_CLASSES}, {"cover": trees.cover[1:]}):
        with pytest.raises(ValueError, match="trees:"):
            replace(trees, **broken)
