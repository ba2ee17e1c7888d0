"""How far windows are from training: the promise, and that nothing looks ahead."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from models.likeness import (
    ALPHA,
    MAX_POINTS,
    SMOOTHED,
    Likeness,
    calibrate,
    fit_training_space,
    highest_per_episode,
    highest_so_far,
    p_values,
    recent_mean,
)

N_INPUTS, LENGTH = 6, 12


def episodes(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Windows of episodes, each with a level of its own, and where they begin."""
    random = np.random.default_rng(seed)
    level = random.normal(size=(n, 1, N_INPUTS)) + shift
    X = np.exp(level + 0.3 * random.normal(size=(n, LENGTH, N_INPUTS)))
    return X.reshape(-1, N_INPUTS).astype(np.float32), np.arange(n * LENGTH) % LENGTH == 0


def likeness(n_train: int = 40, n_calibration: int = 19, seed: int = 0) -> Likeness:
    train, _ = episodes(n_train, seed)
    return calibrate(
        fit_training_space(train, seed), *episodes(n_calibration, seed + 1), "realistic", "c" * 64
    )


@pytest.mark.parametrize("n", [3, 8, 9, 19, 25])
def test_the_promise_is_exact_on_exchangeable_scores(n: int) -> None:
    """P(p <= alpha) is floor(alpha (n + 1)) / (n + 1) without ties, and no more with ties."""
    draws = np.random.default_rng(n).normal(size=(20_000, n + 1))
    for scores, exact in ((draws, True), (draws.round(), False)):
        p = np.array([p_values(row[:1], row[1:])[0] for row in scores])
        called = (p <= ALPHA).mean()
        promised = math.floor(ALPHA * (n + 1) + 1e-9) / (n + 1)
        assert called <= promised + 0.006
        if exact:
            assert called == pytest.approx(promised, abs=0.006)


def test_p_values_count_ties_against_being_unlike() -> None:
    calibration = np.array([1.0, 2.0, 2.0, 3.0])
    p = p_values(np.array([0.5, 2.0, 2.5, 3.0, 9.0]), calibration)
    assert p.tolist() == [1.0, 0.8, 0.4, 0.4, 0.2]
    assert p_values(np.array([5.0]), np.empty(0)).tolist() == [1.0]


def test_the_whole_way_keeps_the_promise_on_new_episodes_and_finds_shifted_ones() -> None:
    called: list[bool] = []
    shifted: list[bool] = []
    for seed in range(0, 400, 4):
        found = likeness(12, 19, seed)
        for shift, out in ((0.0, called), (4.0, shifted)):
            X, first = episodes(1, seed + 2, shift)
            out.append(found.p_values(found.scores(X, first), first)[-1] <= ALPHA)
    assert np.mean(called) <= 0.1 + 0.06
    assert np.mean(shifted) > 0.95


def test_the_p_value_only_falls_and_ends_at_that_of_the_episode() -> None:
    found = likeness()
    X, first = episodes(5, 7, shift=0.5)
    scores = found.scores(X, first)
    p = found.p_values(scores, first)
    assert (np.diff(p.reshape(5, LENGTH), axis=1) <= 0).all()
    whole = p_values(highest_per_episode(scores, first), found.calibration)
    assert p.reshape(5, LENGTH)[:, -1].tolist() == whole.tolist()


def test_later_windows_change_nothing_earlier() -> None:
    found = likeness()
    X, first = episodes(3, 8)
    whole = found.scores(X, first)
    whole_p = found.p_values(whole, first)
    for n in range(1, len(X)):
        part = found.scores(X[:n], first[:n])
        assert part == pytest.approx(whole[:n], abs=1e-9)
        assert found.p_values(whole[:n], first[:n]).tolist() == whole_p[:n].tolist()


def test_episodes_know_nothing_of_each_other() -> None:
    first = np.array([True, False, False, True, False])
    values = np.array([9.0, 3.0, 3.0, 1.0, 2.0])
    assert SMOOTHED == 3
    assert recent_mean(values, first).tolist() == [9.0, 6.0, 5.0, 1.0, 1.5]
    assert highest_so_far(values, first).tolist() == [9.0, 9.0, 9.0, 1.0, 2.0]
    assert highest_per_episode(values, first).tolist() == [9.0, 2.0]


def test_a_window_without_values_says_nothing() -> None:
    found = likeness()
    X, _ = episodes(1, 9)
    X[3] = np.nan
    X[4, :3] = np.nan
    distances = found.space.distances(X)
    assert distances[3] == 0.0
    assert np.isfinite(distances).all()


def test_memory_is_bounded_and_training_windows_are_at_distance_near_0() -> None:
    X, _ = episodes(400, 1)
    space = fit_training_space(X, 0)
    assert space.points.shape == (MAX_POINTS, N_INPUTS)
    lone = replace(space, points=np.repeat(space.points[:1], 9, axis=0))
    assert fit_training_space(X, 0).points.tolist() == space.points.tolist()
    assert space.distances(X).mean() < lone.distances(X).mean()


def test_a_likeness_is_written_and_read_to_the_last_bit() -> None:
    found = likeness()
    again = Likeness.from_bytes(found.to_bytes())
    X, first = episodes(4, 11)
    assert again.id == found.id
    assert (again.mode, again.contract_hash) == ("realistic", "c" * 64)
    assert again.scores(X, first).tolist() == found.scores(X, first).tolist()
    assert again.calibration.tolist() == found.calibration.tolist()
    assert found.least_p == 1 / 20
    nothing_to_compare = replace(found, calibration=found.calibration[:0]).to_bytes()
    with pytest.raises(ValueError, match="calibration episodes"):
        Likeness.from_bytes(nothing_to_compare)
    for damaged in (b"", b"{}", found.to_bytes()[:-9]):
        with pytest.raises(ValueError, match="not a likeness"):
            Likeness.from_bytes(damaged)


@pytest.mark.parametrize("constant", ["NEIGHBOURS", "SMOOTHED"])
def test_a_calibration_is_refused_for_other_scores(
    constant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = likeness().to_bytes()
    monkeypatch.setattr(f"models.likeness.{constant}", 4)
    with pytest.raises(ValueError, match="made with"):
        Likeness.from_bytes(content)
