"""How long paired intervals over episodes take, beside the obvious ways.

    python -m benchmarks.bootstrap

Sixteen models, 10,000 replicates, 100,000 windows in 2,000 episodes. The slower ways make fewer
replicates of one model: every replicate costs the same. All three first agree on the score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats
from sklearn.metrics import f1_score

from benchmarks.lines import recording
from evaluation.bootstrap import EpisodeBootstrap
from evaluation.scores import macro_f1_of_confusion, macro_statistic

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_MODELS, N_REPLICATES, N_WINDOWS, N_EPISODES, N_CLASSES = 16, 10_000, 100_000, 2_000, 5
N_SAMPLES = 40
N_BY_SKLEARN, N_BY_SCIPY = 20, 200
ROSTER = range(N_CLASSES)


def main() -> None:
    random = np.random.default_rng(0)
    episode = np.sort(random.integers(N_EPISODES, size=N_WINDOWS))
    actual = random.integers(N_CLASSES, size=N_WINDOWS)
    predictions = [
        np.where(random.random(N_WINDOWS) < 0.7, actual, random.integers(N_CLASSES, size=N_WINDOWS))
        for _ in range(N_MODELS)
    ]

    def confusion(predicted: NDArray[np.int64]) -> NDArray[np.int64]:
        counts = np.zeros((N_EPISODES, N_CLASSES, N_CLASSES), dtype=np.int64)
        np.add.at(counts, (episode, actual, predicted), 1)
        return counts

    confusions = [confusion(predicted) for predicted in predictions]
    first = np.searchsorted(episode, np.arange(N_EPISODES + 1))

    def ours(group: NDArray[np.int64], models: int = N_MODELS) -> NDArray[np.float64]:
        bootstrap = EpisodeBootstrap(group, N_REPLICATES, 0)
        return bootstrap.replicates_of({"": macro_statistic(confusions[:models], ROSTER)})[""]

    def by_scipy(drawn: NDArray[np.int64]) -> float:
        return float(macro_f1_of_confusion(confusions[0][drawn].sum(axis=0), ROSTER))

    def by_sklearn(drawn: NDArray[np.int64]) -> float:
        rows = np.concatenate([np.arange(first[e], first[e + 1]) for e in drawn])
        return float(
            f1_score(actual[rows], predictions[0][rows], labels=list(ROSTER), average="macro")
        )

    def loop_of_sklearn() -> None:
        for _ in range(N_BY_SKLEARN):
            by_sklearn(random.integers(N_EPISODES, size=N_EPISODES))

    def loop_of_scipy() -> None:
        stats.bootstrap(
            (np.arange(N_EPISODES),), by_scipy, n_resamples=N_BY_SCIPY, vectorized=False,
            method="percentile",
        )  # fmt: skip

    ungrouped = np.zeros(N_EPISODES, dtype=np.int64)
    draws = [random.integers(N_EPISODES, size=N_EPISODES) for _ in range(50)]
    scores = [by_sklearn(drawn) for drawn in draws]
    np.testing.assert_allclose(scores, [by_scipy(drawn) for drawn in draws], atol=1e-12)
    replicates = ours(ungrouped, 1)
    assert abs(replicates.mean() - np.mean(scores)) < np.std(scores), "not the same distribution"
    assert 0.7 < replicates.std() / np.std(scores) < 1.4, "not the same distribution"

    everything = N_REPLICATES * N_MODELS
    with recording("bootstrap") as out:
        peers = {
            "scikit-learn, f1_score in a loop": loop_of_sklearn,
            "scipy.stats.bootstrap of confusions": loop_of_scipy,
        }
        fewer = dict(zip(peers, (N_BY_SKLEARN, N_BY_SCIPY), strict=True))
        out.against(
            "macro F1, resampled episodes", lambda: ours(ungrouped), peers, everything,
            "replicates", rounds=3, fewer=fewer,
        )  # fmt: skip
        samples = np.arange(N_EPISODES) % N_SAMPLES
        out.against(
            "macro F1, resampled samples, then episodes", lambda: ours(samples),
            {"scikit-learn, episodes only": loop_of_sklearn}, everything, "replicates", rounds=3,
            fewer={"scikit-learn, episodes only": N_BY_SKLEARN},
        )  # fmt: skip


if __name__ == "__main__":
    main()
