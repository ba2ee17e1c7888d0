"""Scores: one predictor's held-out predictions, its F1 statistics, and what guessing scores.

F1 of a class is ``2 TP / (2 TP + FP + FN)``. Macro F1 is its mean over the roster: the classes
that occur in the whole test split. A replicate in which a class of the roster does not occur
leaves it out of its mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from config.messages import unknown
from evaluation.bootstrap import EpisodeBootstrap, Statistic

SHORTCUTS = ("position_only", "missingness_only")
"""Baselines that see no behaviour; a model that does not beat them may have learned no more."""
GUESSES = ("prior", "uniform")
"""Baselines that know nothing at all; they are drawn, not fitted."""
BASELINES = SHORTCUTS + GUESSES
ABLATION_SEPARATOR = ":"
"""Separates a model's name from the part left out: ``knn:labels_alone``."""
RATES = ("f1", "precision", "recall")


def baseline_id(name: str) -> str:
    """What a baseline has in place of a checkpoint's id."""
    return f"baseline/{name}"


@dataclass(frozen=True)
class SplitPredictions:
    """One predictor's predictions on one split, ordered by episode and window."""

    name: str
    mode: str
    checkpoint_id: str
    actual: NDArray[np.int64]  # (n_windows,)
    proba: NDArray[np.float64]  # (n_windows, n_classes)
    episode: NDArray[np.int64]  # (n_windows,) row of ``episodes``
    windows: pl.DataFrame
    episodes: pl.DataFrame  # one row per episode, ordered by id

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """``(n_windows,)``."""
        return self.proba.argmax(axis=1)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """``(n_episodes, n_classes, n_classes)``, rows actual, columns predicted."""
        k = self.proba.shape[1]
        cell = (self.episode * k + self.actual) * k + self.predicted
        return np.bincount(cell, minlength=len(self.episodes) * k * k).reshape(-1, k, k)

    @property
    def first(self) -> NDArray[np.bool_]:
        """Where an episode begins ``(n_windows,)``."""
        return np.diff(self.episode, prepend=-1) != 0

    @property
    def roster(self) -> list[int]:
        """The classes that occur."""
        return np.unique(self.actual).tolist()

    @property
    def macro_f1(self) -> float:
        """Over all of its windows."""
        return float(macro_f1_of_confusion(self.confusion.sum(axis=0), self.roster))

    def per_episode(self, values: NDArray) -> NDArray[np.float64]:
        """Sums ``(n_episodes, ...)`` of values ``(n_windows, ...)``."""
        return np.add.reduceat(values, np.flatnonzero(self.first), axis=0)


EPISODE_COLUMNS = (
    "episode_id", "host_id", "profile", "sample_name", "sample_sha256", "started_at_wall_ns",
    "ended_at_wall_ns", "onset_s", "session",
)  # fmt: skip


def prediction_rows(
    windows: pl.DataFrame,
    model: str,
    mode: str,
    checkpoint_id: str,
    proba: NDArray,
    classes: Sequence[str],
) -> pl.DataFrame:
    """Predictions as a table, one row per window: what ``split_predictions`` reads.

    Args:
        windows: rows of a dataset's table.
        proba: ``(n_windows, n_classes)``, in their order.
    """
    return windows.select(
        pl.lit(model).alias("model"),
        pl.lit(mode).alias("mode"),
        pl.lit(checkpoint_id).alias("checkpoint_id"),
        "split",
        *EPISODE_COLUMNS,
        "window",
        "start_s",
        "purity",
        "job",
        pl.col("label").alias("actual"),
        *(pl.Series(f"p_{phase}", proba[:, i]) for i, phase in enumerate(classes)),
    )


def split_predictions(
    predictions: pl.DataFrame, name: str, mode: str, classes: Sequence[str], split: str = "test"
) -> SplitPredictions:
    """Pick one predictor and split from a table of held-out predictions.

    Raises:
        KeyError: the table does not have it.
    """
    rows = predictions.filter(
        (pl.col("model") == name) & (pl.col("mode") == mode) & (pl.col("split") == split)
    ).sort("episode_id", "window")
    if rows.is_empty():
        raise KeyError(f"no {split} predictions of {name}_{mode}")
    code = {phase: i for i, phase in enumerate(classes)}
    actual = np.array([code[label] for label in rows["actual"]], dtype=np.int64)
    proba = rows.select(f"p_{phase}" for phase in classes).to_numpy().astype(np.float64)
    episode = rows["episode_id"].rank("dense").to_numpy().astype(np.int64) - 1
    episodes = rows.select(EPISODE_COLUMNS).unique("episode_id").sort("episode_id")
    return SplitPredictions(
        name, mode, rows["checkpoint_id"][0], actual, proba, episode, rows, episodes
    )


def misclassified(
    predictions: pl.DataFrame, model: str, mode: str, classes: Sequence[str], split: str = "test"
) -> pl.DataFrame:
    """The windows that a predictor got wrong, the most confident errors first.

    Returns:
        ``episode_id, host_id, profile, window, start_s, actual, predicted, probability`` (of the
        predicted class).

    Raises:
        ValueError: the table does not have the split.
        KeyError: the table does not have the predictor.
    """
    splits = sorted(predictions["split"].unique())
    if split not in splits:
        raise ValueError(unknown("split", split, splits))
    rows = split_predictions(predictions, model, mode, classes, split)
    return (
        rows.windows.select("episode_id", "host_id", "profile", "window", "start_s", "actual")
        .with_columns(
            predicted=pl.Series([classes[i] for i in rows.predicted]),
            probability=pl.Series(rows.proba.max(axis=1)),
        )
        .filter(pl.col("predicted") != pl.col("actual"))
        .sort("probability", descending=True)
    )


def macro_f1_of_confusion(confusion: NDArray, roster: Sequence[int]) -> NDArray[np.float64]:
    """Mean F1 over the classes of the roster that occur; NaN where none does.

    Args:
        confusion: ``(..., n_classes, n_classes)``, rows actual, columns predicted.
    """
    return _mean_of_defined(_rates(*_margins(confusion), roster)[0])


def _mean_of_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN where all is."""
    defined = ~np.isnan(values)
    n = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def _margins(confusion: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Right, predicted and actual windows by class ``(..., n_classes)``: all that rates need."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return right, confusion.sum(axis=-2), confusion.sum(axis=-1)


def _rates(
    right: NDArray, predicted: NDArray, actual: NDArray, roster: Sequence[int]
) -> list[NDArray[np.float64]]:
    """Each of ``RATES`` ``(..., n_roster)``, NaN where a class does not occur.

    Precision is also NaN where a class is never predicted.
    """
    right = right.astype(np.float64)
    occurs = actual > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = (2.0 * right / (actual + predicted), right / predicted, right / actual)
    return [np.where(occurs, rate, np.nan)[..., list(roster)] for rate in rates]


def f1_statistic(per_episode: NDArray[np.int64], roster: Sequence[int]) -> Statistic:
    """Macro F1, then each of ``RATES`` by class of the roster: ``(b, 1 + 3 n_roster)``.

    Args:
        per_episode: confusion matrices ``(n_episodes, n_classes, n_classes)``.
    """
    margins = _summed([per_episode])

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        rates = [rate[:, 0] for rate in _rates(*margins(weights), roster)]
        return np.concatenate([_mean_of_defined(rates[0])[:, None], *rates], axis=1)

    return statistic


def macro_statistic(confusions: Sequence[NDArray[np.int64]], roster: Sequence[int]) -> Statistic:
    """Macro F1 of several predictors ``(b, n_predictors)``, in one fast product.

    Args:
        confusions: by predictor, ``(n_episodes, n_classes, n_classes)`` each.
    """
    margins = _summed(confusions)
    return lambda weights: _mean_of_defined(_rates(*margins(weights), roster)[0])


_EXACT = 2**24  # whole numbers up to here are exact in single precision


def _summed(
    confusions: Sequence[NDArray[np.int64]],
) -> Callable[[NDArray[np.float64]], tuple[NDArray, NDArray, NDArray]]:
    """From weights to the margins of weighted sums, ``(b, n_predictors, n_classes)`` each.

    Counts are whole numbers. So a sum is exact in any order, and in single precision too, as long
    as no sum of windows is above ``_EXACT``: that product takes half the time.
    """
    n_predictors, k = len(confusions), confusions[0].shape[-1]
    right, predicted, actual = zip(*map(_margins, confusions), strict=True)
    same = all(np.array_equal(actual[0], other) for other in actual[1:])  # the same windows
    columns = np.concatenate([*right, *predicted, *(actual[:1] if same else actual)], axis=1)
    windows = np.max([margin.sum(axis=1) for margin in actual], axis=0).astype(np.float64)
    double, single = columns.astype(np.float64), columns.astype(np.float32)

    def margins(weights: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
        exact = (weights @ windows).max(initial=0) <= _EXACT
        sums = weights.astype(np.float32) @ single if exact else weights @ double
        by_predictor = sums.astype(np.float64).reshape(len(weights), -1, k)
        whole = by_predictor[:, 2 * n_predictors :]
        return (
            by_predictor[:, :n_predictors],
            by_predictor[:, n_predictors : 2 * n_predictors],
            np.broadcast_to(whole, (len(weights), n_predictors, k)),
        )

    return margins


# --- guessing -----------------------------------------------------------------------------------


def guess_weights(name: str, dataset: Mapping[str, Any], classes: Sequence[str]) -> NDArray:
    """How often a guesser predicts each class: as often as training (``prior``), or equally often.

    Args:
        name: one of ``GUESSES``.
    """
    if name == "uniform":
        return np.full(len(classes), 1 / len(classes))
    counts = dataset["splits"]["train"]["windows_by_phase"]
    weights = np.array([counts.get(phase, 0) for phase in classes], dtype=np.float64)
    return weights / weights.sum()


def guess_macro_f1(
    support: NDArray[np.int64], weights: NDArray, random: np.random.Generator
) -> NDArray[np.float64]:
    """Macro F1 of one guess each for test sets of the given supports.

    Rows of a confusion matrix of independent guesses are multinomial: no window is needed.

    Args:
        support: windows by class, ``(b, n_classes)``.
    """
    k = support.shape[1]
    confusion = np.stack([random.multinomial(support[:, i], weights) for i in range(k)], axis=1)
    return macro_f1_of_confusion(confusion, range(k))


def guess_draws(
    actual: NDArray[np.int64], weights: NDArray, seed: int, n_draws: int = 1_000
) -> NDArray[np.float64]:
    """Macro F1 of seeded guesses on one test set, ``(n_draws,)``; their mean is the baseline."""
    support = np.bincount(actual, minlength=len(weights))
    random = np.random.default_rng([seed, len(weights)])
    return guess_macro_f1(np.tile(support, (n_draws, 1)), weights, random)


def guess_statistic(per_episode: NDArray[np.int64], weights: NDArray, seed: int) -> Statistic:
    """Macro F1 ``(b,)`` of a guess drawn separately in every replicate.

    So an interval holds both the choice of episodes and the luck of guessing, and a difference to
    a model on the same weights is paired. Draws follow each other: one pass over the weights.
    """
    by_class = per_episode.sum(axis=2).astype(np.float64)
    random = np.random.default_rng([seed, len(weights), 1])
    return lambda w: guess_macro_f1((w @ by_class).round().astype(np.int64), weights, random)


def guesses(
    test: SplitPredictions, dataset: Mapping[str, Any], classes: Sequence[str], seed: int
) -> dict[str, tuple[float, Statistic]]:
    """Macro F1 of each of ``GUESSES`` on the windows of a predictor, and its statistic.

    The value is the mean of the seeded draws on the whole test split.
    """
    guessed = {}
    for name in GUESSES:
        weights = guess_weights(name, dataset, classes)
        value = float(guess_draws(test.actual, weights, seed).mean())
        guessed[name] = value, guess_statistic(test.confusion, weights, seed)
    return guessed


Drawn = tuple[float, NDArray[np.float64]]
"""Macro F1 on the test set, and in every replicate."""


def macro_f1_with_baselines(
    own: SplitPredictions,
    predictions: pl.DataFrame,
    dataset: Mapping[str, Any],
    classes: Sequence[str],
    seed: int,
    bootstrap: EpisodeBootstrap,
) -> tuple[Drawn, dict[str, Drawn]]:
    """A predictor's macro F1 and that of each of ``BASELINES``, on the same replicates.

    Args:
        predictions: of each of ``SHORTCUTS``, in the predictor's mode.
        dataset: the dataset's facts (see ``datasets.splits.describe``).
    """
    shortcuts = [split_predictions(predictions, name, own.mode, classes) for name in SHORTCUTS]
    fitted = macro_statistic([each.confusion for each in (own, *shortcuts)], own.roster)
    guessed = guesses(own, dataset, classes, seed)
    drawn = bootstrap.replicates_of({"fitted": fitted} | {n: s for n, (_, s) in guessed.items()})
    mine, *others = zip(bootstrap.observed(fitted).tolist(), drawn["fitted"].T, strict=True)
    found = dict(zip(SHORTCUTS, others, strict=True))
    return mine, found | {name: (value, drawn[name]) for name, (value, _) in guessed.items()}


def phases_of(proba: np.ndarray, phases: tuple[str, ...]) -> list[str]:
    """The most probable phase of each window."""
    return [phases[i] for i in proba.argmax(axis=1)]
