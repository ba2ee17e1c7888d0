"""Calibration: how reliable probabilities are, before and after temperature scaling.

The temperature is fitted on validation; everything else is computed on test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import EpisodeBootstrap, Statistic
from evaluation.documents import Calibrated, Calibration, FigureNote, ReliabilityBin, Subject
from evaluation.figures import figure
from evaluation.scores import SplitPredictions

N_BINS = 15
_LEAST = 1e-7
"""A probability below this counts as this: one sure and wrong window must not decide a log loss."""
_TEMPERATURES = (0.05, 20.0)  # outside, temperatures differ only by rounding


def log_proba(proba: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of probabilities ``(n_windows, n_classes)``, none below that of ``_LEAST``."""
    return np.log(np.maximum(proba, _LEAST))


def scale(proba: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities ``p ** (1 / T)``, normalised: the softmax of the log-probabilities over T."""
    z = log_proba(proba) / temperature
    z -= z.max(axis=1, keepdims=True)
    e = np.exp(z)
    return e / e.sum(axis=1, keepdims=True)


def fit_temperature(proba: NDArray[np.float64], actual: NDArray[np.int64]) -> float:
    """The temperature of least log loss (Guo et al. 2017), between 0.05 and 20; 1 without windows.

    The log loss is convex in 1 / T, so the sign of its slope is bisected.
    """
    if not len(actual):
        return 1.0
    z = log_proba(proba)
    z -= z.max(axis=1, keepdims=True)
    right = z[np.arange(len(z)), actual].mean()

    def slope(inverse: float) -> float:
        e = np.exp(inverse * z)
        return float((e * z).sum(axis=1) @ (1 / e.sum(axis=1)) / len(z) - right)

    if slope(1.0) == 0.0:  # equal probabilities: every temperature is as good
        return 1.0
    low, high = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


@dataclass(frozen=True)
class Bins:
    """Windows by confidence: the probability of the predicted class."""

    low: NDArray[np.float64]  # (n_bins,) least confidence in the bin
    high: NDArray[np.float64]  # (n_bins,) greatest
    of: NDArray[np.int64]  # (n_windows,) bin of each window


def equal_mass_bins(confidence: NDArray[np.float64]) -> Bins:
    """At most ``N_BINS`` bins of as equal size as ties allow: equal confidences stay together."""
    ordered = np.sort(confidence)
    cuts = ordered[np.arange(1, N_BINS) * len(ordered) // N_BINS]
    above = np.searchsorted(np.unique(cuts), confidence, side="right")
    of = np.unique(above, return_inverse=True)[1]
    n = int(of.max()) + 1
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, of, confidence)
    np.maximum.at(high, of, confidence)
    return Bins(low, high, of)


def ece_statistic(sums: NDArray[np.float64]) -> Statistic:
    """Expected calibration error ``(b,)``: mean |accuracy - confidence| over bins, by windows.

    Args:
        sums: by episode and bin, ``(n_episodes, n_bins, 3)``: windows, confidence, correct.
    """
    n_bins = sums.shape[1]
    flat = sums.reshape(len(sums), -1)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        n, confidence, correct = np.moveaxis((weights @ flat).reshape(-1, n_bins, 3), 2, 0)
        return np.abs(correct - confidence).sum(axis=1) / n.sum(axis=1)

    return statistic


def mean_statistic(sums: NDArray[np.float64]) -> Statistic:
    """Mean over windows ``(b,)`` from sums by episode ``(n_episodes, 2)``: values, windows."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        total, n = (weights @ sums).T
        return total / n

    return statistic


def calibration(
    test: SplitPredictions, val: SplitPredictions, bootstrap: EpisodeBootstrap, subject: Subject
) -> Calibration:
    """ECE, Brier score and log loss with intervals, as trained and at the fitted temperature.

    The bins are those of the whole test split in every replicate. ECE cannot fall below 0 and
    grows with noise, so its replicates tend to lie above its value.
    """
    temperature = fit_temperature(val.proba, val.actual)
    at_limit = np.isclose(temperature, _TEMPERATURES, rtol=1e-6).any()
    note = FigureNote(code="temperature_at_limit" if at_limit else "fitted_on_validation")
    return Calibration(
        n_bins=N_BINS,
        temperature=figure(subject.on("val"), "temperature", temperature, note=note),
        as_trained=_calibrated(test, test.proba, "", bootstrap, subject),
        scaled=_calibrated(test, scale(test.proba, temperature), "_scaled", bootstrap, subject),
    )


def _calibrated(
    test: SplitPredictions,
    proba: NDArray[np.float64],
    suffix: str,
    bootstrap: EpisodeBootstrap,
    subject: Subject,
) -> Calibrated:
    confidence = proba.max(axis=1)
    correct = (test.predicted == test.actual).astype(np.float64)
    bins = equal_mass_bins(confidence)
    member = np.arange(len(bins.low)) == bins.of[:, None]
    cells = np.stack([np.ones(len(confidence)), confidence, correct], axis=1)
    by_bin = test.per_episode(member[:, :, None] * cells[:, None, :])
    actual = np.arange(proba.shape[1]) == test.actual[:, None]
    losses = {
        "brier": ((proba - actual) ** 2).sum(axis=1),
        "log_loss": -log_proba(proba)[actual],
    }
    statistics: dict[str, Statistic] = {"ece": ece_statistic(by_bin)}
    for metric, loss in losses.items():
        values = np.stack([loss, np.ones(len(loss))], axis=1)
        statistics[metric] = mean_statistic(test.per_episode(values))
    replicates = bootstrap.replicates_of(statistics)
    figures: dict[str, Any] = {
        metric: figure(
            subject, metric + suffix, float(bootstrap.observed(statistic)), replicates[metric]
        )
        for metric, statistic in statistics.items()
    }
    rows = [
        ReliabilityBin(
            low=low, high=high, windows=int(n), confidence=confident / n, accuracy=right / n
        )
        for low, high, (n, confident, right) in zip(
            bins.low, bins.high, by_bin.sum(axis=0), strict=True
        )
    ]
    return Calibrated(**figures, bins=rows)
