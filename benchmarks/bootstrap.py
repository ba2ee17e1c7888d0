"""How long paired intervals over episodes take, compared with the obvious ways.

    python -m benchmarks.bootstrap

Sixteen models, 10,000 replicates, 100,000 windows in 2,000 episodes. The slower ways are timed on
fewer replicates and models and scaled up: every replicate costs the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats
from sklearn.metrics import f1_score

from benchmarks.extraction import peak_mib
from evaluation.bootstrap import EpisodeBootstrap
from evaluation.scores import macro_f1_of_confusion, macro_statistic

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

N_MODELS, N_REPLICATES, N_WINDOWS, N_EPISODES, N_CLASSES = 16, 10_000, 100_000, 2_000, 5
N_SAMPLES = 40
N_BY_SKLEARN, N_BY_SCIPY = 20, 200


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    random = np.random.default_rng(0)
    episode = np.sort(random.integers(N_EPISODES, size=N_WINDOWS))
    actual = random.integers(N_CLASSES, size=N_WINDOWS)
    predictions = [
        np.where(random.random(N_WINDOWS) < 0.7, actual, random.integers(N_CLASSES, size=N_WINDOWS))
        for _ in range(N_MODELS)
    ]
    roster = range(N_CLASSES)

    def confusion(predicted: NDArray[np.int64]) -> NDArray[np.int64]:
        counts = np.zeros((N_EPISODES, N_CLASSES, N_CLASSES), dtype=np.int64)
        np.add.at(counts, (episode, actual, predicted), 1)
        return counts

    confusions = [confusion(predicted) for predicted in predictions]

    def ours(group: NDArray[np.int64]) -> NDArray[np.float64]:
        bootstrap = EpisodeBootstrap(group, N_REPLICATES, 0)
        return bootstrap.replicates_of({"": macro_statistic(confusions, roster)})[""]

    def by_scipy() -> None:
        stats.bootstrap(
            (np.arange(N_EPISODES),),
            lambda drawn: macro_f1_of_confusion(confusions[0][drawn].sum(axis=0), roster),
            n_resamples=N_BY_SCIPY,
            vectorized=False,
            method="percentile",
        )

    first = np.searchsorted(episode, np.arange(N_EPISODES + 1))

    def by_sklearn() -> None:
        for _ in range(N_BY_SKLEARN):
            drawn = random.integers(N_EPISODES, size=N_EPISODES)
            rows = np.concatenate([np.arange(first[e], first[e + 1]) for e in drawn])
            f1_score(actual[rows], predictions[0][rows], labels=list(roster), average="macro")

    everything = N_REPLICATES * N_MODELS
    ways = {
        "phasewatch, episodes": seconds(lambda: ours(np.zeros(N_EPISODES, dtype=np.int64))),
        "phasewatch, samples then episodes": seconds(
            lambda: ours(np.arange(N_EPISODES) % N_SAMPLES)
        ),
        f"scipy.stats.bootstrap (scaled from {N_BY_SCIPY})": seconds(by_scipy)
        * everything
        / N_BY_SCIPY,
        f"f1_score in a loop (scaled from {N_BY_SKLEARN})": seconds(by_sklearn)
        * everything
        / N_BY_SKLEARN,
    }
    print(
        f"\nMacro F1 of {N_MODELS} models on the same {N_REPLICATES:,} replicates of "
        f"{N_WINDOWS:,} windows in {N_EPISODES:,} episodes"
    )
    quickest = min(ways.values())
    for name, took in ways.items():
        print(f"  {name:<44}{took:10.1f} s{took / quickest:14.1f} x")
    print(f"  peak memory {peak_mib():.0f} MiB")


if __name__ == "__main__":
    main()
