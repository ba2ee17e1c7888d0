"""Comparisons: who is better than whom within one recipe, paired on the same resampled episodes.

A family is all the answers to one question within one recipe and mode (for the question between
modes: within the recipe). Holm's adjustment is made within a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evaluation.bootstrap import resampling
from evaluation.documents import (
    ComparedPredictor,
    Comparison,
    Comparisons,
    Family,
    Question,
    Subject,
)
from evaluation.figures import ReportPolicy, figure
from evaluation.scores import (
    ABLATION_SEPARATOR,
    BASELINES,
    GUESSES,
    SHORTCUTS,
    baseline_id,
    guesses,
    macro_statistic,
    split_predictions,
)

Variant = tuple[str, str]  # model, mode


def unablated_model(part: Variant) -> Variant:
    """The model that an ablation is a part of."""
    return part[0].split(ABLATION_SEPARATOR)[0], part[1]


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


# Long, because it puts one document together, field by field.
def compare(
    predictions: pl.DataFrame,
    variants: Sequence[Variant],
    classes: Sequence[str],
    dataset: dict[str, Any],
    identity: dict[str, Any],
    policy: ReportPolicy,
) -> Comparisons:
    """Every comparison of one recipe.

    Args:
        predictions: held-out predictions of every model and baseline of the recipe.
        variants: the models compared, ``(model, mode)``; of equals on validation the first is the
            reference.
        classes: all classes, in class order.
        dataset: the dataset's facts (see ``datasets.splits.describe``).
        identity: ``recipe`` and ``dataset_version``.
    """
    modes = list(dict.fromkeys(mode for _, mode in variants))
    models = {variant: split_predictions(predictions, *variant, classes) for variant in variants}
    first = models[variants[0]]
    roster = first.roster
    bootstrap, facts = resampling(identity["recipe"], first, policy)

    ablated = {
        (name, mode): split_predictions(predictions, name, mode, classes)
        for name, mode in predictions.select("model", "mode").unique().sort("*").iter_rows()
        if ABLATION_SEPARATOR in name and unablated_model((name, mode)) in models
    }
    shortcuts = {
        (name, mode): split_predictions(predictions, name, mode, classes)
        for mode in modes
        for name in SHORTCUTS
    }
    fitted = models | ablated | shortcuts
    together = macro_statistic([predictor.confusion for predictor in fitted.values()], roster)
    guessed = guesses(first, dataset, classes, policy.seed)
    statistics = {name: statistic for name, (_, statistic) in guessed.items()}
    drawn = bootstrap.replicates_of({"fitted": together} | statistics)
    values = dict(zip(fitted, bootstrap.observed(together).tolist(), strict=True))
    replicates = dict(zip(fitted, drawn["fitted"].T, strict=True))
    ids = {variant: predictor.checkpoint_id for variant, predictor in fitted.items()}
    for name, mode in product(GUESSES, modes):
        ids[name, mode] = baseline_id(name)
        values[name, mode], replicates[name, mode] = guessed[name][0], drawn[name]
    on_val = {
        variant: split_predictions(predictions, *variant, classes, "val") for variant in variants
    }
    val = {variant: predictor.macro_f1 for variant, predictor in on_val.items()}
    subjects = {
        (model, mode): Subject(model=model, mode=mode, checkpoint_id=ids[model, mode], **identity)
        for model, mode in values
    }

    def family(
        name: Question,
        mode: str | None,
        pairs: Sequence[tuple[Variant, Variant]],
        reference: Variant | None = None,
    ) -> Family:
        paired = [
            (values[one] - values[other], replicates[one] - replicates[other])
            for one, other in pairs
        ]
        p = [p_value(*difference) for difference in paired]
        return Family(
            name=name,
            mode=mode,
            reference=reference and subjects[reference].predictor,
            comparisons=[
                Comparison(
                    **dict(figure(subjects[one], "macro_f1_difference", *difference)),
                    other=subjects[other].predictor,
                    p=raw,
                    p_holm=adjusted,
                )
                for (one, other), difference, raw, adjusted in zip(
                    pairs, paired, p, holm(p), strict=True
                )
            ],
        )

    families = []
    for mode in modes:
        of_mode = [variant for variant in variants if variant[1] == mode]
        best = max(of_mode, key=lambda variant: val[variant])
        families += [
            family("reference", mode, [(v, best) for v in of_mode if v != best], best),
            family("pairs", mode, list(combinations(of_mode, 2))),
            family("baselines", mode, [(v, (name, mode)) for v in of_mode for name in BASELINES]),
        ]
        parts = [variant for variant in ablated if variant[1] == mode]
        if parts:
            families.append(
                family("ablations", mode, [(unablated_model(part), part) for part in parts])
            )
    both = [
        ((model, "oracle"), (model, "realistic"))
        for model in dict.fromkeys(model for model, _ in variants)
        if {(model, "oracle"), (model, "realistic")} <= set(variants)
    ]
    families.append(family("modes", None, both))
    return Comparisons(
        **identity,
        classes=list(classes),
        roster=[classes[i] for i in roster],
        n_windows=len(first.actual),
        n_episodes=len(first.episodes),
        bootstrap=facts,
        predictors=[
            ComparedPredictor(
                **dict(subject.predictor),
                kind="model" if v in models else "ablation" if v in ablated else "baseline",
                macro_f1=figure(subject, "macro_f1", values[v], replicates[v]),
                val_macro_f1=figure(subject.on("val"), "macro_f1", val[v]) if v in val else None,
            )
            for v, subject in subjects.items()
        ],
        families=families,
    )
