"""The filter over time and the alarm rule: causal, and bound to its checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from held_out import CLASSES, POLICY, WINDOWS, guess, predictions

from evaluation.alarm_choice import choose_rule, filtered_alarm_scores, filtered_predictions
from evaluation.scores import SHORTCUTS, split_predictions
from features.registry import LAYOUT
from models.alarm import (
    AlarmRule,
    RunningAlarmRule,
    apply_hysteresis,
    count_transitions,
    forward,
    likelihoods,
)

K = len(CLASSES)


def rule(**changes: object) -> AlarmRule:
    initial, transitions = count_transitions([[0, 0, 1, 2, 2, 3], [0, 0, 0]], K)
    fields = {
        "checkpoint_id": "c", "phases": CLASSES, "initial": initial.tolist(), "temperature": 1.4,
        "transitions": transitions.tolist(), "threshold": 0.6, "clear_ratio": 0.5, "version": 1,
    }  # fmt: skip
    return AlarmRule.from_json(fields | changes)


def proba(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(K, 0.3), n)


def by_enumeration(p: np.ndarray, chosen: AlarmRule) -> np.ndarray:
    """P(phase of the last window | all windows), summed over every sequence of phases."""
    seen = likelihoods(p, chosen.temperature)
    paths = {(k,): chosen.initial[k] * seen[0, k] for k in range(K)}
    for window in seen[1:]:
        paths = {
            (*path, k): weight * chosen.transitions[path[-1]][k] * window[k]
            for path, weight in paths.items()
            for k in range(K)
        }
    last = np.array([sum(w for path, w in paths.items() if path[-1] == k) for k in range(K)])
    return last / last.sum()


def test_the_filter_sums_over_every_sequence_of_phases():
    p = proba(6)
    smooth = rule().filter(p)
    for n in (1, 2, 6):
        np.testing.assert_allclose(smooth[n - 1], by_enumeration(p[:n], rule()), rtol=1e-12)


def test_later_windows_change_nothing_earlier_to_the_last_bit():
    p, first = proba(50), np.arange(50) % 20 == 0
    smooth = rule().filter(p, first)
    alarms = rule().alarms(rule().score(smooth), first)
    for n in (1, 7, 21, 49):
        again = rule().filter(p[:n], first[:n])
        assert np.array_equal(again, smooth[:n])
        assert np.array_equal(rule().alarms(rule().score(again), first[:n]), alarms[:n])


def test_episodes_do_not_see_each_other():
    one, other = proba(9), proba(5, seed=1)
    first = np.arange(14) == 9
    together = rule().filter(np.concatenate([one, other]), first)
    assert np.array_equal(together, np.concatenate([rule().filter(one), rule().filter(other)]))


def test_a_single_odd_window_does_not_change_the_phase():
    calm = np.array([0.97, 0.01, 0.01, 0.01])
    odd = np.array([0.2, 0.0, 0.8, 0.0])
    smooth = rule().filter(np.stack([calm, calm, odd, calm]))
    assert smooth.argmax(axis=1).tolist() == [0, 0, 0, 0]
    lasting = rule().filter(np.stack([calm, *[odd] * 40]))
    assert lasting[-1].argmax() == 2  # unlikely is not impossible


def test_transitions_are_counted_and_none_is_impossible():
    initial, transitions = count_transitions([[0, 0, 0, 1], [0, 1, 2]], 4)
    np.testing.assert_allclose(initial, [2.5 / 4, 0.5 / 4, 0.5 / 4, 0.5 / 4])
    np.testing.assert_allclose(transitions.sum(axis=1), 1)
    np.testing.assert_allclose(transitions[0, :2], [0.5, 0.5], atol=1e-3)
    assert transitions.min() == pytest.approx(0.001 / 4)
    assert transitions[3, 3] > 0.99  # never seen: it stays
    assert count_transitions([], 2)[0].tolist() == [0.5, 0.5]


def test_no_window_gives_no_phase():
    assert rule().filter(np.empty((0, K))).shape == (0, K)
    assert forward(np.empty((0, 2)), np.ones(2) / 2, np.eye(2)).shape == (0, 2)
    assert apply_hysteresis(np.empty(0), 0.5, 0.5).shape == (0,)


def test_the_score_is_of_the_phases_under_attack():
    smooth = np.array([[0.1, 0.2, 0.3, 0.4]])
    assert rule().score(smooth).tolist() == [0.3]  # infected_running; there is no infecting here


def test_every_constant_is_part_of_the_id():
    changes = [
        {"checkpoint_id": "d"}, {"temperature": 1.5}, {"threshold": 0.61}, {"clear_ratio": 0.51},
        {"initial": (1.0, 0.0, 0.0, 0.0)}, {"phases": CLASSES[::-1]},
        {"transitions": np.eye(K).tolist()},
    ]  # fmt: skip
    assert len({rule().id, *(rule(**change).id for change in changes)}) == len(changes) + 1
    assert AlarmRule.from_text(rule().text()).id == rule().id


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0}, {"clear_ratio": 1.5}, {"clear_ratio": 0.0}, {"more": 1},
        {"threshold": False}, {"threshold": 10**400}, {"threshold": float("nan")},
        {"initial": (False, 1.0, 0.0, 0.0)}, {"initial": (10**400, 0.0, 0.0, 0.0)},
    ],
)  # fmt: skip
def test_a_rule_of_another_form_is_refused(changes: dict):
    with pytest.raises(ValueError, match="alarm rule"):
        rule(**changes)


def test_following_window_by_window_is_filtering_the_sequence():
    told = proba(60, seed=3)
    filtered = rule().filter(told)
    score = rule().score(filtered)
    follower = RunningAlarmRule(rule())
    followed = [follower.push(row) for row in told]
    np.testing.assert_array_equal(np.stack([state for state, _, _ in followed]), filtered)
    assert [each for _, each, _ in followed] == score.tolist()
    assert [alarm for _, _, alarm in followed] == rule().alarms(score).tolist()


def test_the_rule_is_chosen_on_validation_and_bound_to_the_checkpoint():
    told = {name: guess(WINDOWS, 0.9, i) for i, name in enumerate(("gbt", *SHORTCUTS))}
    table = predictions(WINDOWS, told)
    val = split_predictions(table, "gbt", "realistic", CLASSES, "val")
    training = [[0, 0, 1, 2, 3], [0, 0, 0, 0]]
    chosen, _ = choose_rule(val, training, CLASSES, POLICY, LAYOUT.window)
    assert chosen.checkpoint_id == "gbt-realistic"
    scores = filtered_alarm_scores(filtered_predictions(val, chosen), chosen, LAYOUT.window)
    assert scores.clear_ratio == chosen.clear_ratio
    hours = scores.clean_hours.sum()
    assert scores.false_alarms(chosen.threshold).sum() / hours <= POLICY.false_alarms_per_hour
    assert chosen == choose_rule(val, training, CLASSES, POLICY, LAYOUT.window)[0]
