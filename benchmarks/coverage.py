"""How often the 95% interval of macro F1 contains the true value, by number of test episodes.

    python -m benchmarks.coverage            # 2,000 simulated test sets of each size
    python -m benchmarks.coverage --measure  # the constants of the design, of an ingested corpus

A simulated episode has as many windows of each phase as a recorded one, drawn at random. The
predictions for its windows of a phase follow the confusion of ``gbt_realistic`` on hosts that it
was not trained on, and are alike within the episode as they are there: Dirichlet-multinomial
counts with the measured intraclass correlation of being right. Phases are independent given the
episode: the measured correlations between them lie around 0. The truth is macro F1 of the expected
confusion. The interval is that of the reports: whole episodes resampled 10,000 times, percentiles.

The design was fixed before its results were seen. ``evaluation.figures`` keeps them, and reports
say where coverage is below 90%.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from datasets.splits import build_table
from datasets.windows import examples, inputs
from evaluation.bootstrap import EpisodeBootstrap
from evaluation.figures import ReportPolicy, interval
from evaluation.scores import (
    f1_statistic,
    macro_f1_of_confusion,
    prediction_rows,
    split_predictions,
)
from features.registry import LAYOUT
from models.registry import find_variant
from stages.checkpoints import fit_windows
from stages.datasets import ingested_windows
from stages.project import Project
from stages.workspace import workspace_from_environment

SIMULATIONS = 2_000
SEED = 13
EPISODES = (4, 6, 10, 20, 40, 80, 160)
"""Test episodes; figures of fewer than four have no interval."""

_COUNTS = """
1,2,2,10,7 2,1,2,7,5 2,2,2,5,4 2,2,2,8,4 2,2,2,9,4 2,3,1,7,4 2,3,2,4,6 3,1,2,8,4 3,2,1,7,9
3,2,2,5,3 3,3,2,5,3 3,3,2,5,6 3,4,2,8,3 4,1,2,9,3 4,2,2,5,7 4,2,2,7,6 4,2,2,7,7 4,3,2,5,3
4,3,2,8,3 4,3,2,8,4 4,4,2,5,3 5,2,2,6,3 5,2,2,6,3 5,2,2,8,3 5,2,3,5,0 5,2,3,5,2 5,2,3,6,4
5,3,2,5,5 5,4,3,4,0 5,4,4,6,0 5,4,4,6,3 6,1,1,10,2 6,1,2,6,2 6,1,3,6,4 6,2,2,4,2 6,2,2,6,5
6,2,2,12,2 6,2,5,6,2 6,3,5,5,2 6,4,3,7,5 6,5,3,3,2 7,1,3,10,7 7,2,2,4,4 7,3,1,10,5 7,3,2,3,0
7,3,3,4,5 7,4,2,5,4 7,4,2,6,0 7,4,3,7,0 8,2,2,9,8 8,4,2,4,0 8,4,2,9,3 8,4,3,3,4 8,4,4,4,2
8,6,2,7,4 8,6,3,4,0 9,3,2,9,4 9,4,2,4,1 9,5,2,3,4 9,5,3,6,0 10,2,2,5,0 10,4,3,5,0 10,4,3,6,3
10,5,2,3,4 10,5,4,6,0 10,6,2,5,0 11,1,2,12,9 11,2,2,5,4 11,2,2,9,6 11,2,4,10,5 11,3,2,5,2
11,5,2,5,2 11,5,4,4,0 11,5,5,7,3 11,6,1,9,4 11,6,2,2,0 11,8,3,11,4 12,2,3,8,5 12,3,6,5,0
12,4,4,7,2 13,3,2,5,4 13,5,4,6,4 14,1,3,9,3 14,4,2,4,3 14,4,3,5,4 14,4,4,7,3 14,5,4,6,0
14,5,4,6,4 15,0,0,0,0 15,0,0,0,0 15,0,0,0,0 15,4,3,11,2 15,4,4,5,2 16,0,0,0,0 16,0,0,0,0
16,1,3,7,6 16,3,1,7,5 16,4,4,6,0 16,7,4,7,0 17,0,0,0,0 17,1,2,8,8 17,4,2,9,7 17,4,3,7,4
18,3,1,8,6 19,0,0,0,0 19,0,0,0,0 19,0,0,0,0 19,0,0,0,0 20,0,0,0,0 21,0,0,0,0 21,0,0,0,0
21,4,3,3,0 21,4,4,8,0 21,4,4,10,1 84,0,0,0,0 87,0,0,0,0 91,0,0,0,0 91,0,0,0,0 94,0,0,0,0
94,0,0,0,0
"""
COMPOSITION = np.array([[int(n) for n in each.split(",")] for each in _COUNTS.split()])
"""Windows by phase of the 120 accepted episodes of the embedded corpus, every host in turn."""
CONFUSION = np.array(
    [
        [1470, 41, 5, 30, 101],
        [17, 273, 5, 20, 14],
        [1, 5, 248, 9, 0],
        [11, 15, 10, 584, 28],
        [37, 1, 0, 32, 253],
    ]
)
"""Windows of these, rows actual, columns predicted."""
CORRELATION = {
    "as measured": (0.21, 0.01, 0.0, 0.05, 0.17),
    "stronger": (0.3, 0.3, 0.3, 0.3, 0.3),
}
"""Of being right, between two windows of one phase and episode, by phase."""


def expected() -> NDArray[np.float64]:
    """The confusion that one episode has on average ``(n_classes, n_classes)``."""
    rates = CONFUSION / CONFUSION.sum(axis=1, keepdims=True)
    return COMPOSITION.mean(axis=0)[:, None] * rates


def simulated(
    n_episodes: int, correlation: tuple[float, ...], random: np.random.Generator
) -> NDArray[np.int64]:
    """Confusions by episode of one simulated test set ``(n_episodes, n_classes, n_classes)``."""
    windows = COMPOSITION[random.integers(len(COMPOSITION), size=n_episodes)]
    out = np.zeros((n_episodes, *CONFUSION.shape), dtype=np.int64)
    for phase, (row, alike) in enumerate(zip(CONFUSION, correlation, strict=True)):
        rates = np.tile(row / row.sum(), (n_episodes, 1))
        if alike:  # of 0, no episode differs from another
            shares = random.standard_gamma(rates * (1 / alike - 1))
            rates = shares / shares.sum(axis=1, keepdims=True)
        out[:, phase] = random.multinomial(windows[:, phase], rates)
    return out


def coverage(
    n_episodes: int,
    correlation: tuple[float, ...],
    simulations: int = SIMULATIONS,
    replicates: int = ReportPolicy().replicates,
) -> tuple[float, float]:
    """Share of the simulated intervals that contain the true value, and their mean width."""
    truth, held, width = expected(), 0, 0.0
    for number in range(simulations):
        random = np.random.default_rng([SEED, n_episodes, number])
        confusion = simulated(n_episodes, correlation, random)
        roster = np.flatnonzero(confusion.sum(axis=(0, 2))).tolist()
        bootstrap = EpisodeBootstrap(np.zeros(n_episodes, dtype=np.int64), replicates, number)
        drawn = bootstrap.replicates_of({"": f1_statistic(confusion, roster)})[""]
        low, high = interval(drawn[:, 0])
        held += low <= float(macro_f1_of_confusion(truth, roster)) <= high
        width += (high - low) / simulations
    return held / simulations, width


def measured() -> NDArray[np.int64]:
    """Confusions by episode of ``gbt_realistic``, each host held out in turn."""
    workspace = workspace_from_environment()
    windows, shards = ingested_windows(Project(workspace))
    variant, layout = find_variant("gbt", "realistic"), workspace.layout
    found = []
    for host in sorted(windows["host_id"].unique()):
        table, _ = build_table(windows, "host", replace(workspace.splits, test_host=host))
        train, val = (examples(table, shards, side, variant, layout) for side in ("train", "val"))
        model = fit_windows(workspace, variant, train, val)
        test = table.filter(pl.col("split") == "test")
        proba = model.predict_proba(inputs(test, shards, variant, layout))
        rows = prediction_rows(test, "gbt", "realistic", host, proba, layout.phases)
        found.append(split_predictions(rows, "gbt", "realistic", layout.phases).confusion)
    return np.concatenate(found)


def intraclass_correlation(n: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """Of being right between windows of one episode, by analysis of variance.

    Args:
        n, right: windows, and those that are right, by episode.
    """
    n, right = n[n > 0], right[n > 0]
    total, groups = n.sum(), len(n)
    between = (n * (right / n - right.sum() / total) ** 2).sum() / (groups - 1)
    within = (right * (1 - right / n)).sum() / (total - groups)
    size = (total - (n**2).sum() / total) / (groups - 1)
    return float((between - within) / (between + (size - 1) * within))


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of the intervals of macro F1.")
    parser.add_argument("--measure", action="store_true", help="the constants of the design")
    parser.add_argument("--simulations", type=int, default=SIMULATIONS)
    asked = parser.parse_args()
    if asked.measure:
        confusion = measured()
        print(np.sort(confusion.sum(axis=2), axis=0), confusion.sum(axis=0), sep="\n")
        for phase, name in enumerate(LAYOUT.phases):
            counts = confusion[:, phase]
            print(name, round(intraclass_correlation(counts.sum(axis=1), counts[:, phase]), 3))
        return
    print(f"{'correlation':14}{'episodes':>9}{'coverage':>10}{'width':>8}")
    for name, correlation in CORRELATION.items():
        for n_episodes in EPISODES:
            share, width = coverage(n_episodes, correlation, asked.simulations)
            print(f"{name:14}{n_episodes:9}{share:10.3f}{width:8.3f}", flush=True)


if __name__ == "__main__":
    main()
