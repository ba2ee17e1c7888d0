"""Recipe ``host`` with every host held out once: what one default host does not tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import polars as pl

from evaluation.alarm_choice import choose_rule, filtered_alarm_scores, filtered_predictions
from evaluation.detection import is_provisional
from evaluation.documents import HostTurn, RotatedModel, Spread, TurnMetric
from evaluation.figures import ReportPolicy
from evaluation.scores import split_predictions
from features.registry import WindowSpec

_LESS_IS_BETTER = ("clean_time_alarmed",)


def host_turn(
    host: str,
    predictions: pl.DataFrame,
    model: str,
    mode: str,
    training: Iterable[Sequence[int]],
    classes: Sequence[str],
    policy: ReportPolicy,
    window: WindowSpec,
) -> HostTurn:
    """How a model does on the host that it was trained without.

    Args:
        predictions: of the model, on validation and on the host (``test``).
        training: per training episode the classes of its consecutive windows.
    """
    val, test = (
        split_predictions(predictions, model, mode, classes, split) for split in ("val", "test")
    )
    rule, _ = choose_rule(val, training, classes, policy, window)
    smooth = filtered_predictions(test, rule)
    alarms, chosen_on = (
        filtered_alarm_scores(each, rule, window)
        for each in (smooth, filtered_predictions(val, rule))
    )
    attacks = int(alarms.attacked().sum())
    return HostTurn(
        host_id=host,
        episodes=len(test.episodes),
        windows=len(test.actual),
        clean_hours=float(alarms.clean_hours.sum()),
        attacks=attacks,
        provisional=is_provisional(float(chosen_on.clean_hours.sum())),
        macro_f1=test.macro_f1,
        filtered_macro_f1=smooth.macro_f1,
        clean_time_alarmed=float(alarms.alarmed(rule.threshold)[alarms.clean].mean())
        if alarms.clean.any()
        else None,
        detected_share=alarms.detected(rule.threshold) / attacks if attacks else None,
    )


def summarise_turns(
    model: str, mode: str, turns: list[HostTurn], default_host: str
) -> RotatedModel:
    """The turns of a model, and each metric over them."""
    metrics: tuple[TurnMetric, ...] = get_args(TurnMetric)
    spreads = [_spread(metric, turns, default_host) for metric in metrics]
    return RotatedModel(model=model, mode=mode, turns=turns, spreads=spreads)


def _spread(metric: TurnMetric, turns: Iterable[HostTurn], default_host: str) -> Spread:
    values = {turn.host_id: getattr(turn, metric) for turn in turns}
    known = {host: value for host, value in values.items() if value is not None}
    if not known:
        return Spread(
            metric=metric, mean=None, worst=None, worst_host=None, spread=None, default=None
        )
    order = sorted(known, key=lambda host: known[host])
    worst, best = (order[-1], order[0]) if metric in _LESS_IS_BETTER else (order[0], order[-1])
    return Spread(
        metric=metric,
        mean=sum(known.values()) / len(known),
        worst=known[worst],
        worst_host=worst,
        spread=abs(known[best] - known[worst]),
        default=known.get(default_host),
    )
