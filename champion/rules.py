"""Promotion: may a challenger replace the champion? Every reason against it, with figures.

Both are scored on the same test episodes, those that the champion was trained on left out. What is
judged here are predictions; where checkpoints lie and who is champion is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from evaluation import wording
from evaluation.bootstrap import resampling
from evaluation.figures import finite_or_none, interval
from evaluation.scores import BASELINES, SHORTCUTS, guesses, macro_statistic, scored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evaluation.figures import ReportPolicy

MARGIN = 0.005  # macro F1 that the challenger may be worse by, on any recipe, at the interval's end
GROUP_MARGIN = 0.03  # macro F1 that a profile or host may lose
MIN_EPISODES = 5  # of fewer, resampling says next to nothing
CHAMPION, CHALLENGER = "champion", "challenger"

TRAINING_COLUMNS = (
    "episode_id", "split", "host_id", "sample_sha256", "started_at_wall_ns", "ended_at_wall_ns",
)  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """Whether the challenger may be promoted: it may where there is no reason against it."""

    reasons: list[str]
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)  # the evidence, by recipe

    @property
    def granted(self) -> bool:
        return not self.reasons


def known_to(recipe: str, training: pl.DataFrame, test: pl.DataFrame) -> pl.Series:
    """Which rows of ``test`` are no test for a model trained on the episodes of ``training``.

    A corpus that grew is split anew: what is tested today may have been trained on. So are left out
    the episodes themselves, and what the recipe promises to hold out: the training's hosts, its
    samples, or all that began before its last episode ended.

    Args:
        training: ``TRAINING_COLUMNS`` of the training and validation side, one row per episode.
        test: windows or episodes with the same columns.
    """
    known = test["episode_id"].is_in(training["episode_id"].implode())
    if recipe == "time":
        return known | (test["started_at_wall_ns"] < training["ended_at_wall_ns"].max())
    column = {"host": "host_id", "sample": "sample_sha256"}[recipe]
    return known | test[column].is_in(training[column].implode())


def against_champion(
    recipe: str, predictions: pl.DataFrame, classes: Sequence[str], policy: ReportPolicy
) -> dict[str, Any]:
    """Evidence of one recipe: both macro F1, the paired difference, every profile and host.

    Args:
        predictions: of the models ``champion`` and ``challenger``, on the same test windows.
        classes: all classes, in class order.
    """
    pair = [scored(predictions, who, "realistic", classes) for who in (CHALLENGER, CHAMPION)]
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


def reasons_against_champion(recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why a challenger may not replace the champion: a sentence each; empty: it may.

    Args:
        recipes: recipe -> ``against_champion``; a recipe with fewer than ``MIN_EPISODES`` may have
            ``episodes`` and ``left_out`` only.
    """
    reasons = []
    for recipe, found in recipes.items():
        if found["episodes"] < MIN_EPISODES:
            reasons.append(
                f"Recipe {recipe}: {found['episodes']} test episodes are left to compare on, at "
                f"least {MIN_EPISODES} are needed; {found['left_out']} were left out because the "
                "champion was trained on them or on what they hold out."
            )
            continue
        if not found["difference"]["low"] > -MARGIN:
            worse = found["difference"]["high"] < 0
            reasons.append(
                f"Recipe {recipe}: "
                + ("worse than the champion: " if worse else
                   f"it may be worse than the champion by more than {MARGIN:g}: ")
                + f"macro F1 {found[CHALLENGER]:.3f} against {found[CHAMPION]:.3f}, difference "
                f"{_said(found['difference'])} on {found['episodes']} episodes."
            )  # fmt: skip
        reasons += [
            f"Recipe {recipe}: {group['what']} {group['name']} falls by "
            f"{group[CHAMPION] - group[CHALLENGER]:.3f}, more than {GROUP_MARGIN:g}: macro F1 "
            f"{group[CHALLENGER]:.3f} against {group[CHAMPION]:.3f} on "
            f"{group['episodes']} episode{'' if group['episodes'] == 1 else 's'}."
            for group in found["groups"]
            if group[CHALLENGER] is not None
            and group[CHAMPION] - group[CHALLENGER] > GROUP_MARGIN + 1e-12
        ]
    compared = {r: found["difference"] for r, found in recipes.items() if "difference" in found}
    if compared and not any(difference["low"] > 0 for difference in compared.values()):
        listed = "; ".join(f"{recipe} {_said(d)}" for recipe, d in compared.items())
        reasons.append(f"On no recipe does the interval lie above 0: {listed}.")
    return reasons


def against_baselines(
    recipe: str,
    predictions: pl.DataFrame,
    classes: Sequence[str],
    dataset: Mapping[str, Any],
    policy: ReportPolicy,
) -> dict[str, Any]:
    """Evidence of one recipe where there is no champion: the paired difference to each baseline.

    Args:
        predictions: of the model ``challenger`` and of each of ``SHORTCUTS``.
        dataset: the dataset's facts (see ``datasets.describe``).
    """
    own = scored(predictions, CHALLENGER, "realistic", classes)
    shortcuts = [scored(predictions, name, "realistic", classes) for name in SHORTCUTS]
    bootstrap, facts = resampling(recipe, own, policy)
    fitted = macro_statistic([p.confusion for p in (own, *shortcuts)], own.roster)
    guessed = guesses(own, dataset, classes, policy.seed)
    drawn = bootstrap.replicates_of({"fitted": fitted} | {n: s for n, (_, s) in guessed.items()})
    mine, *values = bootstrap.observed(fitted).tolist()
    my_draws, *draws = drawn["fitted"].T
    found = dict(zip(SHORTCUTS, zip(values, draws, strict=True), strict=True))
    found |= {name: (value, drawn[name]) for name, (value, _) in guessed.items()}
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


def reasons_against_first(recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why a model may not be the first champion: it must beat each baseline on every recipe."""
    return [
        f"Recipe {recipe}: not better than {baseline['name'].replace('_', '-')}: macro F1 "
        f"{found[CHALLENGER]:.3f} against {baseline['macro_f1']:.3f}, difference "
        f"{_said(baseline['difference'])} on {found['episodes']} episodes."
        for recipe, found in recipes.items()
        for baseline in found["baselines"]
        if not baseline["difference"]["low"] > 0
    ]


def _difference(value: float, replicates: np.ndarray) -> dict[str, float]:
    low, high = interval(replicates)
    return {"value": float(value), "low": low, "high": high}


def _said(difference: Mapping[str, float]) -> str:
    low, high = difference["low"], difference["high"]
    note = " (includes 0)" if low <= 0 <= high else ""
    return f"{difference['value']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}{note}"
