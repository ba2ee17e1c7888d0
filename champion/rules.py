"""Promotion: may a challenger replace the champion? Every ground against it, with figures.

Both are scored on the same test episodes; those that the champion was trained on are left out.
This module compares predictions only. ``stages.champion`` knows where checkpoints are and who is
champion, and asks for the grounds in order. A ground is a code with numbers; ``evaluation.wording``
makes the sentences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from datasets.splits import SplitPolicy, held_out_by
from evaluation import wording
from evaluation.alarm_choice import filtered_alarm_scores, filtered_predictions
from evaluation.bootstrap import resampling
from evaluation.detection import clean_time, is_provisional
from evaluation.documents import Figure, Objection, Subject
from evaluation.figures import ReportPolicy, finite_or_none, interval
from evaluation.scores import BASELINES, macro_f1_with_baselines, macro_statistic, split_predictions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from features.registry import WindowSpec
    from models.alarm import AlarmRule

MARGIN = 0.005  # macro F1 that the challenger may be worse by, on any recipe, at the interval's end
GROUP_MARGIN = 0.03  # macro F1 that a profile or host may lose
MIN_EPISODES = 5  # of fewer, resampling says next to nothing
CHAMPION, CHALLENGER = "champion", "challenger"
ALARM_RECIPES = ("session", "host", "time")
"""Where false alarms count: on another day, on another machine, later."""
ALARM_GROUNDS = frozenset({"alarms_unmeasured", "alarms_over_budget", "alarmed_time_over_budget"})
"""The only grounds that a person may accept."""

TRAINING_COLUMNS = (
    "episode_id", "split", "host_id", "sample_sha256", "started_at_wall_ns", "ended_at_wall_ns",
)  # fmt: skip


@dataclass(frozen=True)
class TrialOutcome:
    """Whether the challenger may be promoted: it may where no ground against it stands."""

    grounds: list[Objection]
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)  # the evidence, by recipe
    accept_alarms: str = ""  # why alarms over the budget are accepted; empty: they are not

    @property
    def accepted(self) -> list[Objection]:
        """The grounds that a person accepted."""
        return [g for g in self.grounds if self.accept_alarms and g.code in ALARM_GROUNDS]

    @property
    def blocking(self) -> list[Objection]:
        """The grounds that hold a promotion up."""
        return [ground for ground in self.grounds if ground not in self.accepted]

    @property
    def granted(self) -> bool:
        return not self.blocking


def not_held_out(
    recipe: str, training: pl.DataFrame, test: pl.DataFrame, policy: SplitPolicy
) -> pl.Series:
    """Which rows of ``test`` are no test for a model trained on the episodes of ``training``.

    A corpus that grew is split anew: what is tested today may have been trained on. So are left out
    the episodes themselves, and what the recipe promises to hold out: the training's hosts, its
    samples, its sessions, or all that began before its last episode ended.

    Args:
        training: ``TRAINING_COLUMNS`` of the training and validation side, one row per episode.
        test: windows or episodes with the same columns.
    """
    known = test["episode_id"].is_in(training["episode_id"].implode())
    if recipe == "time":
        return known | (test["started_at_wall_ns"] < training["ended_at_wall_ns"].max())
    trained, tested = (held_out_by(rows, recipe, policy) for rows in (training, test))
    return known | tested.is_in(trained.implode())


def champion_evidence(
    recipe: str, predictions: pl.DataFrame, classes: Sequence[str], policy: ReportPolicy
) -> dict[str, Any]:
    """Evidence of one recipe: both macro F1, the paired difference, every profile and host.

    Args:
        predictions: of the models ``champion`` and ``challenger``, on the same test windows.
        classes: all classes, in class order.
    """
    pair = [
        split_predictions(predictions, who, "realistic", classes) for who in (CHALLENGER, CHAMPION)
    ]
    own = pair[0]
    bootstrap, facts = resampling(recipe, own, policy)
    whole = macro_statistic([p.confusion for p in pair], own.roster)
    observed = bootstrap.observed(whole)
    drawn = bootstrap.replicates_of({"": whole})[""]
    groups = []
    for column in ("profile", "host_id"):
        for name in own.episodes[column].unique().sort():
            here = (own.episodes[column] == name).to_numpy()
            within = macro_statistic([p.confusion * here[:, None, None] for p in pair], own.roster)
            mine, theirs = bootstrap.observed(within).tolist()
            groups.append(
                {
                    "what": column.removesuffix("_id"),
                    "name": name,
                    "episodes": int(here.sum()),
                    CHALLENGER: finite_or_none(mine),
                    CHAMPION: finite_or_none(theirs),
                }
            )
    return {
        "episodes": len(own.episodes),
        "windows": len(own.actual),
        "conditional_on": wording.conditional_on(facts.conditional_on),
        CHALLENGER: float(observed[0]),
        CHAMPION: float(observed[1]),
        "difference": _difference(observed[0] - observed[1], drawn[:, 0] - drawn[:, 1]),
        "groups": groups,
    }


def grounds_against_champion(recipes: Mapping[str, Mapping[str, Any]]) -> list[Objection]:
    """Why a challenger may not replace the champion; empty: it may.

    Args:
        recipes: recipe -> ``champion_evidence``; a recipe with fewer than ``MIN_EPISODES`` may have
            ``episodes`` and ``left_out`` only, one that is ``skipped`` says nothing.
    """
    grounds = []
    compared = {r: found for r, found in recipes.items() if "skipped" not in found}
    for recipe, found in compared.items():
        episodes = found["episodes"]
        if episodes < MIN_EPISODES:
            numbers = {"episodes": episodes, "needed": MIN_EPISODES, "left_out": found["left_out"]}
            grounds.append(Objection(code="too_few_left", recipe=recipe, numbers=numbers))
            continue
        if not found["difference"]["low"] > -MARGIN:
            numbers = {
                "margin": MARGIN, "episodes": episodes,
                CHALLENGER: found[CHALLENGER], CHAMPION: found[CHAMPION], **found["difference"],
            }  # fmt: skip
            certain = found["difference"]["high"] < 0
            grounds.append(
                Objection(
                    code="worse" if certain else "may_be_worse", recipe=recipe, numbers=numbers
                )
            )
        grounds += [
            Objection(
                code="group_falls",
                recipe=recipe,
                about=group["name"],
                names={"group": group["what"]},
                numbers={
                    "falls_by": group[CHAMPION] - group[CHALLENGER],
                    "margin": GROUP_MARGIN,
                    **{name: group[name] for name in (CHALLENGER, CHAMPION, "episodes")},
                },
            )
            for group in found["groups"]
            if group[CHALLENGER] is not None
            and group[CHAMPION] - group[CHALLENGER] > GROUP_MARGIN + 1e-12
        ]
    lows = [found["difference"]["low"] for found in compared.values() if "difference" in found]
    if lows and not max(lows) > 0:
        grounds.append(Objection(code="nowhere_better", numbers={"low": max(lows)}))
    return grounds


def baseline_evidence(
    recipe: str,
    predictions: pl.DataFrame,
    classes: Sequence[str],
    dataset: Mapping[str, Any],
    policy: ReportPolicy,
) -> dict[str, Any]:
    """Evidence of one recipe where there is no champion: the paired difference to each baseline.

    Args:
        predictions: of the model ``challenger`` and of each of ``SHORTCUTS``.
        dataset: the dataset's facts (see ``datasets.splits.describe``).
    """
    own = split_predictions(predictions, CHALLENGER, "realistic", classes)
    bootstrap, facts = resampling(recipe, own, policy)
    (mine, my_draws), found = macro_f1_with_baselines(
        own, predictions, dataset, classes, policy.seed, bootstrap
    )
    return {
        "episodes": len(own.episodes),
        "windows": len(own.actual),
        "conditional_on": wording.conditional_on(facts.conditional_on),
        CHALLENGER: mine,
        "baselines": [
            {"name": n, "macro_f1": found[n][0],
             "difference": _difference(mine - found[n][0], my_draws - found[n][1])}
            for n in BASELINES
        ],
    }  # fmt: skip


def grounds_against_first(recipes: Mapping[str, Mapping[str, Any]]) -> list[Objection]:
    """Why a model may not be the first champion: it must beat each baseline on every recipe.

    Args:
        recipes: recipe -> ``baseline_evidence``; a recipe with fewer than ``MIN_EPISODES`` may have
            ``episodes`` only.
    """
    too_few = [
        Objection(
            code="too_few_tested",
            recipe=recipe,
            numbers={"episodes": found["episodes"], "needed": MIN_EPISODES},
        )
        for recipe, found in recipes.items()
        if found.get("episodes", MIN_EPISODES) < MIN_EPISODES
    ]
    return too_few + [
        Objection(
            code="baseline_not_beaten",
            recipe=recipe,
            about=baseline["name"],
            numbers={
                CHALLENGER: found[CHALLENGER],
                "baseline": baseline["macro_f1"],
                "episodes": found["episodes"],
                **baseline["difference"],
            },
        )
        for recipe, found in recipes.items()
        for baseline in found.get("baselines", ())
        if not baseline["difference"]["low"] > 0
    ]


def alarm_evidence(
    recipe: str,
    predictions: pl.DataFrame,
    classes: Sequence[str],
    window: WindowSpec,
    policy: ReportPolicy,
    subject: Subject,
    rule: AlarmRule,
) -> dict[str, Any]:
    """What an operator would feel: false alarms on test under the checkpoint's alarm rule.

    Args:
        predictions: of the model ``challenger``, on validation and test.
    """
    test, val = (
        filtered_predictions(
            split_predictions(predictions, CHALLENGER, "realistic", classes, split), rule
        )
        for split in ("test", "val")
    )
    scores, chosen_on = (
        filtered_alarm_scores(predictor, rule, window) for predictor in (test, val)
    )
    bootstrap, _ = resampling(recipe, test, policy)
    whole = clean_time(scores, rule.threshold, bootstrap, subject)[0]
    val_hours = float(chosen_on.clean_hours.sum())
    return {
        "threshold": rule.threshold,
        "provisional": is_provisional(val_hours),
        "clean_hours": {"val": val_hours, "test": whole.hours},
        "false_alarms_per_hour": _bounds(whole.false_alarms_per_hour),
        "clean_time_alarmed": _bounds(whole.clean_time_alarmed),
    }


def grounds_against_alarms(
    recipes: Mapping[str, Mapping[str, Any]], policy: ReportPolicy
) -> list[Objection]:
    """Where a model exceeds the alarm budget, or where that is not known. Values decide."""
    grounds = []
    for recipe in ALARM_RECIPES:
        alarms = recipes.get(recipe, {}).get("alarms")
        if alarms is None:
            continue
        hours = alarms["clean_hours"]["test"]
        if not hours:
            grounds.append(Objection(code="alarms_unmeasured", recipe=recipe))
            continue
        rate, share = alarms["false_alarms_per_hour"], alarms["clean_time_alarmed"]
        if rate["value"] > policy.false_alarms_per_hour:
            numbers = {"budget": policy.false_alarms_per_hour, "hours": hours, **rate}
            grounds.append(Objection(code="alarms_over_budget", recipe=recipe, numbers=numbers))
        if share["value"] > policy.clean_time_alarmed:
            numbers = {"budget": policy.clean_time_alarmed, "hours": hours, **share}
            grounds.append(
                Objection(code="alarmed_time_over_budget", recipe=recipe, numbers=numbers)
            )
    return grounds


def _bounds(found: Figure) -> dict[str, float | None]:
    return {name: getattr(found, name) for name in ("value", "low", "high")}


def _difference(value: float, replicates: np.ndarray) -> dict[str, float]:
    low, high = interval(replicates)
    return {"value": float(value), "low": low, "high": high}
