"""What intervals cost on a million test windows: all models, 10,000 replicates.

    python -m benchmarks.evaluation [--windows N] [--episodes N] [--replicates N]

Synthetic held-out predictions, as if every model were right in two windows of three. Each line is
a process of its own: CPU seconds, wall seconds, peak memory. ``models`` is macro F1 of all models
and the shortcuts on the same resampled episodes, which is what a page of comparisons rests on;
``report`` is everything that one model's report says, its operating curves included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.lines import recording
from evaluation.bootstrap import EpisodeBootstrap
from evaluation.figures import ReportPolicy
from evaluation.report import evaluate
from evaluation.scores import SHORTCUTS, macro_statistic
from features.registry import LAYOUT
from models.alarm import AlarmRule
from models.registry import VARIANTS

N_MODELS = len(VARIANTS) + 2  # and the shortcuts of a mode
LIMIT_S, LIMIT_MB = 10.0, 1000
PHASES = LAYOUT.phases


def labels(n_windows: int, n_episodes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Episode and phase of each window: an episode goes through the phases in their order."""
    episode = np.arange(n_windows) * n_episodes // n_windows
    first = np.searchsorted(episode, np.arange(n_episodes))
    size = np.bincount(episode, minlength=n_episodes)
    return episode, (np.arange(n_windows) - first[episode]) * len(PHASES) // size[episode]


def models(n_windows: int, n_episodes: int, replicates: int) -> float:
    """Processor seconds of macro F1 of all models on the same resampled episodes."""
    random = np.random.default_rng(0)
    episode, actual = labels(n_windows, n_episodes)
    k, confusions = len(PHASES), []
    for _ in range(N_MODELS):
        guess = random.integers(k, size=n_windows)
        predicted = np.where(random.random(n_windows) < 2 / 3, actual, guess)
        cell = (episode * k + actual) * k + predicted
        confusions.append(np.bincount(cell, minlength=n_episodes * k * k).reshape(-1, k, k))
    began = time.process_time()
    bootstrap = EpisodeBootstrap(np.zeros(n_episodes, dtype=np.int64), replicates, 0)
    drawn = bootstrap.replicates_of({"": macro_statistic(confusions, range(k))})[""]
    took = time.process_time() - began
    assert drawn.shape[0] == replicates
    return took


def table(n_windows: int, n_episodes: int) -> pl.DataFrame:
    """Held-out predictions of one model and of the shortcuts, on validation and on test."""
    random = np.random.default_rng(0)
    episode, actual = labels(n_windows, n_episodes)
    start = np.arange(n_windows) - np.searchsorted(episode, np.arange(n_episodes))[episode]
    base = pl.DataFrame(
        {
            "episode_id": pl.Series(episode).map_elements(lambda n: f"{n:026d}", pl.String),
            "host_id": pl.Series([f"lab-{n % 12:02}" for n in range(n_episodes)])[episode],
            "profile": pl.Series([f"profile-{n % 9}" for n in range(n_episodes)])[episode],
            "sample_name": pl.Series([f"sample-{n % 200}" for n in range(n_episodes)])[episode],
            "sample_sha256": pl.Series([f"{n % 200:064x}" for n in range(n_episodes)])[episode],
            "started_at_wall_ns": episode * 600 * 10**9,
            "ended_at_wall_ns": (episode + 1) * 600 * 10**9,
            "onset_s": np.full(n_windows, 80.0),
            "session": pl.Series([f"day-{n % 40}" for n in range(n_episodes)])[episode],
            "window": start,
            "start_s": start * 5.0,
            "purity": np.ones(n_windows),
            "job": pl.Series(["", "backup"])[start % 2],
            "actual": pl.Series(list(PHASES))[actual],
        }
    )
    parts = []
    for name in ("gbt", *SHORTCUTS):
        odds = random.gumbel(size=(n_windows, len(PHASES)))
        odds[np.arange(n_windows), actual] += 2.0
        odds = np.exp(odds - odds.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        for split, chosen in (("test", slice(None)), ("val", slice(0, n_windows // 5))):
            parts.append(
                base[chosen].select(
                    pl.lit(name).alias("model"),
                    pl.lit("realistic").alias("mode"),
                    pl.lit(f"{name}-id").alias("checkpoint_id"),
                    pl.lit(split).alias("split"),
                    pl.all(),
                    *(pl.Series(f"p_{p}", odds[chosen, i]) for i, p in enumerate(PHASES)),
                )
            )
    return pl.concat(parts)


def report(n_windows: int, n_episodes: int, replicates: int) -> float:
    """Processor seconds of everything that one model's report says."""
    predictions = table(n_windows, n_episodes)
    side = {"windows_by_phase": dict.fromkeys(PHASES, 1), "synthetic_episodes": 0}
    side |= {"windows": n_windows, "episodes": n_episodes, "coverage": {}}
    side |= {key: ["x"] for key in ("hosts", "sessions", "samples")}
    dataset = {
        "splits": dict.fromkeys(("train", "val", "test"), side), "tested_profiles": [],
        "untested_profiles": [], "excluded": {}, "exclusions": [],
    }  # fmt: skip
    identity = dict.fromkeys(
        ("dataset_version", "contract_hash", "schema_hash", "validation_index_digest",
         "code_commit"), "x",
    ) | {"recipe": "time", "config": {}, "checkpoint_bytes": 1}  # fmt: skip
    stays = np.full((len(PHASES), len(PHASES)), 0.02) + np.eye(len(PHASES)) * 0.9
    rule = AlarmRule(
        "gbt-id", tuple(PHASES), (1 / len(PHASES),) * len(PHASES),
        tuple(tuple(row) for row in stays.tolist()), 1.0, 0.5, 0.8,
    )  # fmt: skip
    began = time.process_time()
    found = evaluate(
        predictions, "gbt", "realistic", PHASES, dataset, identity,
        ReportPolicy(replicates=replicates), LAYOUT.window,
        {"history": [], "best_step": 0}, rule, None,
    )  # fmt: skip
    found.model_dump_json()
    return time.process_time() - began


STEPS = {"models": models, "report": report}
WHAT = {
    "models": f"macro F1 of {N_MODELS} predictors, intervals",
    "report": "everything that one report says",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=25_000)
    parser.add_argument("--replicates", type=int, default=10_000)
    parser.add_argument("--only", choices=STEPS)
    chosen = parser.parse_args()
    if chosen.only:
        seconds = STEPS[chosen.only](chosen.windows, chosen.episodes, chosen.replicates)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(json.dumps([seconds, peak]))
        return
    with recording("evaluation") as out:
        for share in (0.1, 1.0):
            n_windows, n_episodes = (round(share * n) for n in (chosen.windows, chosen.episodes))
            for name, what in WHAT.items():
                numbers = [f"--windows={n_windows}", f"--episodes={n_episodes}"]
                command = [sys.executable, "-m", "benchmarks.evaluation", "--only", name, *numbers]
                command.append(f"--replicates={chosen.replicates}")
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                seconds, peak = json.loads(done.stdout.splitlines()[-1])
                if name == "models":
                    out.limit(what, seconds, LIMIT_S, "CPU s", size=n_windows)
                    out.limit(f"{what}: memory", peak, LIMIT_MB, "MB", size=n_windows)
                else:
                    out.alone(what, seconds, "CPU s", size=n_windows)
                    out.alone(f"{what}: memory", peak, "MB", size=n_windows)
                out.point("Intervals", n_windows, "windows", seconds, "CPU s", name)
                out.point("Memory of intervals", n_windows, "windows", peak, "MB", name)


if __name__ == "__main__":
    main()
