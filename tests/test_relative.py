"""Inputs relative to the machine's own past: causal, bounded, and the same live."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from features.registry import LAYOUT
from features.relative import (
    RunningMedian,
    episode_inputs,
    running_median,
    signed_log,
    tensor_inputs,
)
from features.summary import summarise
from features.windows import window_starts, window_views

HORIZON = LAYOUT.window.horizon_windows


def rows(n: int, columns: int = 7, seed: int = 0) -> np.ndarray:
    """Values over nine decades with gaps, ties and a column that is all missing."""
    random = np.random.default_rng(seed)
    values = random.lognormal(3.0, 4.0, (n, columns)) * random.choice([-1, 1], (n, columns))
    values[random.random((n, columns)) < 0.3] = np.nan
    values[:, 1] = np.round(random.random(n) * 2)
    values[:, 2] = np.nan
    return values.astype(np.float32)


def slow_median(values: np.ndarray, horizon: int) -> np.ndarray:
    logs = signed_log(values.astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(
            [np.nanmedian(logs[max(0, i - horizon + 1) : i + 1], axis=0) for i in range(len(logs))]
        )


@pytest.mark.parametrize("horizon", [1, 2, 3, 12, 500])
def test_the_running_median_is_the_median_of_the_last_rows(horizon: int):
    values = rows(90)
    np.testing.assert_allclose(
        running_median(values, horizon), slow_median(values, horizon), rtol=1e-6
    )


def test_later_rows_change_nothing_earlier():
    values = rows(60)
    whole = running_median(values, HORIZON)
    for n in (1, 5, 30):
        assert np.array_equal(running_median(values[:n], HORIZON), whole[:n], equal_nan=True)


def test_rows_older_than_the_horizon_change_nothing():
    values, other = rows(60), rows(60, seed=1)
    later = np.concatenate([other[:20], values[20:]])
    first_free = 20 + HORIZON - 1
    assert np.array_equal(
        running_median(values, HORIZON)[first_free:],
        running_median(later, HORIZON)[first_free:],
        equal_nan=True,
    )


def test_a_stream_has_the_medians_of_the_batch_bit_for_bit():
    values = rows(40)
    stream = RunningMedian(HORIZON)
    assert np.array_equal(
        np.stack([stream.push(row) for row in values]),
        running_median(values, HORIZON),
        equal_nan=True,
    )


def test_no_rows_give_no_medians():
    assert running_median(rows(0), HORIZON).shape == (0, 7)


def test_inputs_are_the_values_and_their_distance_from_the_baseline():
    random = np.random.default_rng(0)
    series = random.lognormal(2, 1, (400, len(LAYOUT.channels))).astype(np.float32)
    starts = window_starts(len(series), LAYOUT.window)
    features = summarise(series, starts, LAYOUT)
    summary = episode_inputs("summary", series, features, LAYOUT)
    tensor = episode_inputs("tensor", series, features, LAYOUT)
    n = features.shape[1]
    assert summary.shape == (len(starts), len(LAYOUT.input_names("summary")))
    assert tensor.shape == (len(starts), 100, len(LAYOUT.input_names("tensor")))
    np.testing.assert_array_equal(summary[:, :n], features)
    assert not summary[0, n:].any()  # the first window is its own baseline
    np.testing.assert_allclose(
        summary[:, n:], signed_log(features) - slow_median(features, HORIZON), atol=1e-5
    )
    means = features[:, [LAYOUT.feature_names.index(f"{c}.mean") for c in LAYOUT.channel_names]]
    expected = tensor_inputs(
        window_views(series, LAYOUT.window), slow_median(means, HORIZON).astype(np.float32)
    )
    np.testing.assert_allclose(tensor, expected, atol=1e-5)


def test_a_constant_factor_moves_no_relative_input_of_a_large_value():
    """A machine that is ten times as large looks the same, as far as it can."""
    random = np.random.default_rng(0)
    features = random.lognormal(12, 1, (30, 4)).astype(np.float32)

    def relative(values: np.ndarray) -> np.ndarray:
        return signed_log(values.astype(np.float64)) - running_median(values, HORIZON)

    np.testing.assert_allclose(relative(features), relative(10 * features), atol=0.01)
