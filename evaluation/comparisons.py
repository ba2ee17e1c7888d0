"""Comparisons: who is better than whom within one recipe, paired on the same resampled episodes.

A family is all the answers to one question within one recipe and mode (or, for the question
between modes, within the recipe): Holm's adjustment is made within a family.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.figures import COMPARISONS_SCHEMA, Subject
from evaluation.scores import (
    ABLATED,
    BASELINES,
    GUESSES,
    SHORTCUTS,
    baseline_id,
    guesses,
    macro_f1,
    macro_statistic,
    scored,
)
from evaluation.testset import resampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from numpy.typing import NDArray

    from evaluation.figures import ReportPolicy

Who = tuple[str, str]  # model, mode

QUESTIONS = {
    "reference": "Is the model as good as the one that is best on validation?",
    "pairs": "Do two models of one mode differ?",
    "modes": "What do the channels of the oracle add to the model?",
    "ablations": "What does the part that is left out add to the model?",
    "baselines": "Is the model better than knowing the schedule, the collectors, or nothing?",
}
P_VALUE = (
    "two-sided, (1 + k) / (B + 1), where k counts the replicates whose difference lies at least as "
    "far from the observed difference as that lies from 0"
)


def whole(part: Who) -> Who:
    """The model that an ablation is a part of."""
    return part[0].split(ABLATED)[0], part[1]


def p_value(observed: float, replicates: NDArray[np.float64]) -> float:
    """Two-sided p of the hypothesis that a paired difference is 0.

    The replicates scatter about the observed difference as it would scatter about 0 were the
    hypothesis true, so ``k`` counts those with ``|replicate - observed| >= |observed|``, and
    ``p = (1 + k) / (B + 1)`` (Davison and Hinkley 1997, sections 4.2.3 and 4.4.1; the 1 counts the
    observation itself, so p is never 0: Phipson and Smyth 2010). Undefined replicates do not
    count. Near the level the percentile interval may disagree where replicates are skewed.
    """
    defined = replicates[~np.isnan(replicates)]
    # the observed difference and a replicate equal to it come from sums in other orders
    slack = 1e-12
    k = int(np.count_nonzero(np.abs(defined - observed) >= abs(observed) - slack))
    return (1 + k) / (len(defined) + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given (Holm 1979): the family-wise error is controlled."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def compare(
    predictions: pl.DataFrame,
    variants: Sequence[Who],
    classes: Sequence[str],
    dataset: dict[str, Any],
    identity: dict[str, Any],
    policy: ReportPolicy,
) -> dict[str, Any]:
    """Every comparison of one recipe as one versioned JSON value.

    Args:
        predictions: held-out predictions of every model and baseline of the recipe.
        variants: the models compared, ``(model, mode)``; of equals on validation the first is the
            reference.
        classes: all classes, in class order.
        dataset: the dataset's facts (see ``datasets.describe``).
        identity: ``recipe`` and ``dataset_version``.
    """
    modes = list(dict.fromkeys(mode for _, mode in variants))
    recipe = identity["recipe"]
    own = {who: scored(predictions, *who, classes) for who in variants}
    first = own[variants[0]]
    roster = first.roster
    bootstrap, facts = resampling(recipe, first, policy)

    ablated = {
        (name, mode): scored(predictions, name, mode, classes)
        for name, mode in predictions.select("model", "mode").unique().sort("*").iter_rows()
        if ABLATED in name and whole((name, mode)) in own
    }
    shortcuts = {
        (name, mode): scored(predictions, name, mode, classes)
        for mode in modes
        for name in SHORTCUTS
    }
    fitted = own | ablated | shortcuts
    together = macro_statistic([predictor.confusion for predictor in fitted.values()], roster)
    guessed = guesses(first, dataset, classes, policy.seed)
    statistics = {name: statistic for name, (_, statistic) in guessed.items()}
    drawn = bootstrap.replicates_of({"fitted": together} | statistics)
    values = dict(zip(fitted, bootstrap.observed(together).tolist(), strict=True))
    replicates = dict(zip(fitted, drawn["fitted"].T, strict=True))
    ids = {who: predictor.checkpoint_id for who, predictor in fitted.items()}
    for name, mode in product(GUESSES, modes):
        ids[name, mode] = baseline_id(name)
        values[name, mode], replicates[name, mode] = guessed[name][0], drawn[name]
    on_val = {who: scored(predictions, *who, classes, "val") for who in variants}
    val = {who: float(macro_f1(v.confusion.sum(axis=0), v.roster)) for who, v in on_val.items()}

    def subject(who: Who) -> Subject:
        return Subject(*who, recipe, "test", identity["dataset_version"], ids[who])

    def difference(one: Who, other: Who) -> dict[str, Any]:
        value, paired = values[one] - values[other], replicates[one] - replicates[other]
        figure = subject(one).figure("macro_f1_difference", value, paired)
        return figure | {"other": subject(other).who, "p": p_value(value, paired)}

    def kind(who: Who) -> str:
        return "model" if who in own else "ablation" if who in ablated else "baseline"

    def family(
        name: str, mode: str | None, pairs: Sequence[tuple[Who, Who]], reference: Who | None = None
    ) -> dict[str, Any]:
        found = [difference(one, other) for one, other in pairs]
        for entry, adjusted in zip(found, holm([f["p"] for f in found]), strict=True):
            entry["p_holm"] = adjusted
        return {
            "name": name,
            "mode": mode,
            "question": QUESTIONS[name],
            "reference": reference and {
                "model": reference[0], "mode": reference[1], "checkpoint_id": ids[reference]
            },
            "comparisons": found,
        }  # fmt: skip

    families = []
    for mode in modes:
        here = [who for who in variants if who[1] == mode]
        best = max(here, key=lambda who: val[who])
        families += [
            family("reference", mode, [(who, best) for who in here if who != best], best),
            family("pairs", mode, list(combinations(here, 2))),
            family("baselines", mode, [(w, (name, mode)) for w in here for name in BASELINES]),
        ]
        parts = [who for who in ablated if who[1] == mode]
        if parts:
            families.append(family("ablations", mode, [(whole(who), who) for who in parts]))
    both = [
        ((model, "oracle"), (model, "realistic"))
        for model in dict.fromkeys(model for model, _ in variants)
        if {(model, "oracle"), (model, "realistic")} <= set(variants)
    ]
    families.append(family("modes", None, both))
    return {
        "schema": COMPARISONS_SCHEMA,
        **identity,
        "split": "test",
        "classes": list(classes),
        "roster": [classes[i] for i in roster],
        "n_windows": len(first.actual),
        "n_episodes": len(first.episodes),
        "bootstrap": facts,
        "p_value": P_VALUE,
        "predictors": [
            {
                **subject(who).who,
                "kind": kind(who),
                "macro_f1": subject(who).figure("macro_f1", values[who], replicates[who]),
                "val_macro_f1": subject(who).on("val").figure("macro_f1", val[who])
                if who in own
                else None,
            }
            for who in values
        ],
        "families": families,
    }
