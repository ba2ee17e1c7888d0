"""Figures with intervals, computed from test predictions.

Windows overlap and come in episodes, so whole episodes are resampled: a bootstrap over windows
covered the truth 47 % of the time where one over episodes covered it 92 %.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from models.metrics import confusion_matrix, f1_by_class

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

REPORT_SCHEMA = "phasewatch.eval_report/1"
LEVEL = 0.95
_CHUNK = 1_000  # replicates at a time: bounds memory on large corpora
SHORTCUTS = ("position_only", "missingness_only")
"""Baselines that know nothing of behaviour; a model that does not beat them may be one of them."""


@dataclass(frozen=True, slots=True)
class ReportPolicy:
    """How figures are computed."""

    replicates: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 100:
            raise ValueError(f"evaluation: {self.replicates} replicates; take at least 100")


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric with its interval. ``left_out``: replicates in which some class did not occur."""

    metric: str
    value: float
    low: float
    high: float
    left_out: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"level": LEVEL}


class EpisodeBootstrap:
    """Resampling weights over the episodes of one test set; equal for every model compared."""

    def __init__(self, n_episodes: int, policy: ReportPolicy):
        self.n_episodes = n_episodes
        self._policy = policy

    def macro_f1(
        self, per_episode: NDArray[np.int64], roster: Sequence[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
        """Replicates of macro F1 and of F1 by class, from confusion matrices by episode.

        A class without support in a replicate is left out of its mean.

        Args:
            per_episode: ``(n_episodes, n_classes, n_classes)``.

        Returns:
            ``(macro (B,), by class (B, n_classes), replicates that lack a class of the roster)``.
        """
        random = np.random.default_rng(self._policy.seed)
        n, k = self.n_episodes, per_episode.shape[-1]
        flat = per_episode.reshape(n, k * k).astype(np.float64)
        macro, by_class, lacking = [], [], 0
        for start in range(0, self._policy.replicates, _CHUNK):
            size = min(_CHUNK, self._policy.replicates - start)
            weights = random.multinomial(n, np.full(n, 1 / n), size=size)
            confusion = (weights @ flat).reshape(size, k, k)
            f1 = np.where(confusion.sum(axis=-1) > 0, f1_by_class(confusion), np.nan)
            on_roster = f1[:, list(roster)]
            lacking += int(np.isnan(on_roster).any(axis=1).sum())
            by_class.append(f1)
            macro.append(np.nanmean(on_roster, axis=1))
        return np.concatenate(macro), np.concatenate(by_class), lacking


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval at ``LEVEL``."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Scored:
    """One predictor's test predictions in the order of the test set's episodes."""

    name: str
    mode: str
    checkpoint_id: str
    actual: NDArray[np.int64]
    predicted: NDArray[np.int64]
    per_episode: NDArray[np.int64]  # (n_episodes, n_classes, n_classes)
    windows: pl.DataFrame


def scored(predictions: pl.DataFrame, name: str, mode: str, classes: Sequence[str]) -> Scored:
    """Pick one predictor from a table of test predictions.

    Raises:
        KeyError: the table does not have it.
    """
    rows = predictions.filter((pl.col("model") == name) & (pl.col("mode") == mode)).sort(
        "episode_id", "window"
    )
    if rows.is_empty():
        raise KeyError(f"no test predictions of {name}_{mode}")
    code = {phase: i for i, phase in enumerate(classes)}
    actual = np.array([code[label] for label in rows["actual"]], dtype=np.int64)
    proba = rows.select(f"p_{phase}" for phase in classes).to_numpy()
    predicted = proba.argmax(axis=1)
    episode = rows["episode_id"].rank("dense").to_numpy().astype(np.int64) - 1
    k = len(classes)
    cell = (episode * k + actual) * k + predicted
    n_episodes = int(episode.max()) + 1
    counts = np.bincount(cell, minlength=n_episodes * k * k).reshape(n_episodes, k, k)
    return Scored(name, mode, rows["checkpoint_id"][0], actual, predicted, counts, rows)


def evaluate(
    predictions: pl.DataFrame,
    model: str,
    mode: str,
    classes: Sequence[str],
    dataset: dict[str, Any],
    identity: dict[str, Any],
    policy: ReportPolicy,
) -> dict[str, Any]:
    """The report on one checkpoint and one recipe, as one versioned JSON value.

    Args:
        predictions: test predictions of every model and baseline of the recipe.
        classes: all classes, in class order.
        dataset: the dataset's facts (see ``datasets.describe``).
        identity: what goes into the report as it is: recipe, versions, hashes.
    """
    own = scored(predictions, model, mode, classes)
    roster = sorted(set(own.actual.tolist()))
    bootstrap = EpisodeBootstrap(len(own.per_episode), policy)
    macro, by_class, lacking = bootstrap.macro_f1(own.per_episode, roster)
    confusion = own.per_episode.sum(axis=0)
    f1 = f1_by_class(confusion)
    value = float(np.mean(f1[roster]))

    report: dict[str, Any] = {
        "schema": REPORT_SCHEMA,
        "model": model,
        "mode": mode,
        "split": "test",
        "checkpoint_id": own.checkpoint_id,
        **identity,
        "classes": list(classes),
        "roster": [classes[i] for i in roster],
        "absent_classes": [c for i, c in enumerate(classes) if i not in roster],
        "tested_profiles": dataset["tested_profiles"],
        "untested_profiles": dataset["untested_profiles"],
        "n_windows": len(own.actual),
        "n_episodes": len(own.per_episode),
        "splits": dataset["splits"],
        "excluded_episodes": dataset["excluded"],
        "bootstrap": {
            "unit": "episode",
            "replicates": policy.replicates,
            "seed": policy.seed,
            "replicates_lacking_a_class": lacking,
        },
        "macro_f1": Figure("macro_f1", value, *interval(macro), lacking).as_dict(),
        "per_class": [
            _class_row(classes[i], confusion, i, float(f1[i]), by_class[:, i]) for i in roster
        ],
        "per_profile": _groups(own, "profile", roster),
        "per_host": _groups(own, "host_id", roster),
        "confusion": {"classes": list(classes), "counts": confusion.tolist()},
        "baselines": [],
        "warnings": [],
    }
    for name in SHORTCUTS:
        baseline = scored(predictions, name, mode, classes)
        theirs, _, _ = bootstrap.macro_f1(baseline.per_episode, roster)
        their_value = float(np.mean(f1_by_class(baseline.per_episode.sum(axis=0))[roster]))
        difference = Figure(
            "macro_f1_difference", value - their_value, *interval(macro - theirs)
        ).as_dict()
        report["baselines"].append(
            {
                "name": name,
                "macro_f1": Figure("macro_f1", their_value, *interval(theirs)).as_dict(),
                "difference": difference,
            }
        )
        if difference["low"] <= 0:
            learned = "the schedule" if name == "position_only" else "which collectors ran"
            report["warnings"].append(
                f"Not better than {name.replace('_', '-')} beyond chance (difference "
                f"{difference['value']:+.3f}, 95 % interval {difference['low']:+.3f} to "
                f"{difference['high']:+.3f}): it may have learned {learned}."
            )
    for name in ("prior", "uniform"):
        draws = random_baseline(own.actual, name, dataset, classes, policy.seed)
        report["baselines"].append(
            {
                "name": name,
                "macro_f1": Figure("macro_f1", float(draws.mean()), *interval(draws)).as_dict(),
                "difference": None,
            }
        )
    if identity.get("val_macro_f1") and identity["val_macro_f1"] > report["macro_f1"]["high"]:
        report["warnings"].append(
            f"Validation macro F1 {identity['val_macro_f1']:.3f} lies above the test interval: not "
            "all that was learned on the training side carries over."
        )
    for profile in dataset["untested_profiles"]:
        report["warnings"].append(f"Profile {profile} was never tested: no figure speaks of it.")
    for phase in report["absent_classes"]:
        report["warnings"].append(f"Phase {phase} is absent from the test set: never tested.")
    synthetic = sum(side["synthetic_episodes"] for side in dataset["splits"].values())
    if synthetic:
        report["warnings"].append(f"{synthetic} synthetic episodes are part of this dataset.")
    return report


def _class_row(
    name: str, confusion: NDArray, i: int, f1: float, replicates: NDArray[np.float64]
) -> dict[str, Any]:
    right, actual, said = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
    return {
        "class": name,
        "support": actual,
        "precision": right / said if said else None,
        "recall": right / actual if actual else None,
        "f1": Figure("f1", f1, *interval(replicates)).as_dict(),
    }


def _groups(own: Scored, column: str, roster: Sequence[int]) -> list[dict[str, Any]]:
    """Macro F1 within each profile or host, over the classes that occur there."""
    rows = []
    n_classes = own.per_episode.shape[-1]
    values = own.windows[column].to_numpy()
    for value in sorted(set(values)):
        here = values == value
        confusion = confusion_matrix(own.actual[here], own.predicted[here], n_classes)
        present = [i for i in roster if confusion[i].sum()]
        rows.append(
            {
                column: value,
                "windows": int(here.sum()),
                "episodes": own.windows.filter(pl.Series(here))["episode_id"].n_unique(),
                "classes": len(present),
                "macro_f1": float(np.mean(f1_by_class(confusion)[present])),
            }
        )
    return rows


def random_baseline(
    actual: NDArray[np.int64],
    name: str,
    dataset: dict[str, Any],
    classes: Sequence[str],
    seed: int,
    n_draws: int = 1_000,
) -> NDArray[np.float64]:
    """Macro F1 of seeded draws that guess from the training prior or uniformly."""
    k = len(classes)
    if name == "prior":
        counts = dataset["splits"]["train"]["windows_by_phase"]
        weights = np.array([counts.get(phase, 0) for phase in classes], dtype=np.float64)
    else:
        weights = np.ones(k)
    support = np.bincount(actual, minlength=k)
    random = np.random.default_rng([seed, k])
    # rows of a confusion matrix of independent guesses are multinomial: no window is needed
    confusion = np.stack(
        [random.multinomial(n, weights / weights.sum(), size=n_draws) for n in support], axis=1
    )
    return np.mean(f1_by_class(confusion)[:, support > 0], axis=1)
