"""How posteriors become phases over time and alarms: chosen on validation, never on test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from evaluation.detection import AlarmScores, alarm_scores, choose_threshold
from evaluation.documents import FigureNote
from evaluation.figures import ReportPolicy
from evaluation.scores import SplitPredictions
from features.registry import WindowSpec
from models.alarm import AlarmRule, count_transitions, forward, likelihoods

TRIED_TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
CLEAR_RATIOS = (1.0, 0.5, 0.25)  # of the threshold; in case of doubt the first


def filtered_predictions(predictor: SplitPredictions, rule: AlarmRule) -> SplitPredictions:
    """A predictor as the rule's filter makes it."""
    return replace(predictor, proba=rule.filter(predictor.proba, predictor.first))


def filtered_alarm_scores(
    predictor: SplitPredictions, rule: AlarmRule, window: WindowSpec
) -> AlarmScores:
    """Alarm scores of a filtered predictor, with the rule's clear ratio."""
    length_s, stride_s = window.length_ms / 1000, window.stride_ms / 1000
    scores = alarm_scores(predictor, rule.phases, length_s, stride_s)
    return replace(scores, clear_ratio=rule.clear_ratio)


def choose_rule(
    val: SplitPredictions,
    training: Iterable[Sequence[int]],
    classes: Sequence[str],
    policy: ReportPolicy,
    window: WindowSpec,
) -> tuple[AlarmRule, FigureNote | None]:
    """The rule of a checkpoint, and a note on its threshold.

    Transitions are counted on training. The temperature is the one of least log loss after
    filtering. Of the clear ratios, each with its threshold, the one that alarms most of the time
    under attack.

    Args:
        training: per training episode the classes of its consecutive windows.
    """
    initial, transitions = count_transitions(training, len(classes))
    temperature = _temperature(val, initial, transitions)
    rule = AlarmRule(
        checkpoint_id=val.checkpoint_id,
        phases=tuple(classes),
        initial=tuple(initial.tolist()),
        transitions=tuple(map(tuple, transitions.tolist())),
        temperature=temperature,
        threshold=1.0,
        clear_ratio=1.0,
    )
    scores = filtered_alarm_scores(filtered_predictions(val, rule), rule, window)
    attacked = ~scores.clean & (scores.end_s > scores.onset_s[scores.episode])

    def tried(ratio: float) -> tuple[float, float, float, FigureNote | None]:
        clearing = replace(scores, clear_ratio=ratio)
        threshold, note = choose_threshold(clearing, policy)
        found = float(clearing.alarmed(threshold)[attacked].mean()) if attacked.any() else 0.0
        return found, ratio, threshold, note

    _, ratio, threshold, note = max(map(tried, CLEAR_RATIOS), key=itemgetter(0))  # the first best
    return replace(rule, threshold=threshold, clear_ratio=ratio), note


def _temperature(
    val: SplitPredictions, initial: NDArray[np.float64], transitions: NDArray[np.float64]
) -> float:
    if not len(val.actual):
        return 1.0

    def log_loss(temperature: float) -> float:
        proba = forward(likelihoods(val.proba, temperature), initial, transitions, val.first)
        return float(-np.log(np.maximum(proba[np.arange(len(proba)), val.actual], 1e-12)).mean())

    return min(TRIED_TEMPERATURES, key=log_loss)
