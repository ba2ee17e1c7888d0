"""Detection: how good a model is as an alarm.

The alarm score of a window is the probability that the machine is being or has been taken over
(``INFECTED``). A window raises the alarm if its score reaches the threshold, at the window's end.
The threshold is chosen on validation; everything else is computed on test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import chi2

from episodes.format import CLEAN, INFECTED
from evaluation.bootstrap import EpisodeBootstrap, Statistic
from evaluation.documents import LEVEL, AttackedEpisode, Detection, Figure, FigureNote, Subject
from evaluation.figures import figure
from evaluation.scores import Scored

_DEFAULT_THRESHOLD = 0.5  # without clean time on validation
_S_PER_HOUR = 3600.0


@dataclass(frozen=True)
class AlarmScores:
    """One predictor's alarm scores on one split, ordered by episode and window."""

    score: NDArray[np.float64]  # (n_windows,)
    end_s: NDArray[np.float64]  # (n_windows,) when the score is known
    clean: NDArray[np.bool_]  # (n_windows,) clean from end to end
    first: NDArray[np.bool_]  # (n_windows,) of its episode
    episode: NDArray[np.int64]  # (n_windows,)
    onset_s: NDArray[np.float64]  # (n_episodes,) NaN: never attacked
    stride_s: float

    @property
    def clean_hours(self) -> NDArray[np.float64]:
        """Clean time by episode ``(n_episodes,)``: each decision stands for a stride."""
        return self.by_episode(self.clean) * (self.stride_s / _S_PER_HOUR)

    def by_episode(self, windows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """How many windows of each episode, ``(n_episodes,)``."""
        counts = np.bincount(self.episode[windows], minlength=len(self.onset_s))
        return counts.astype(np.float64)

    @property
    def before(self) -> NDArray[np.float64]:
        """The score of the window before, ``(n_windows,)``; -inf for the first."""
        return np.where(self.first, -np.inf, np.roll(self.score, 1))

    def false_alarms(self, threshold: float) -> NDArray[np.bool_]:
        """The windows ``(n_windows,)`` at which a false alarm begins.

        Consecutive alarmed windows are one alarm; it is false where its first window is clean.
        """
        return self.clean & (self.score >= threshold) & (self.before < threshold)

    def attacked(self) -> NDArray[np.bool_]:
        """Episodes ``(n_episodes,)`` in which an attack begins before the last window ends."""
        last = np.zeros(len(self.onset_s))
        np.maximum.at(last, self.episode, self.end_s)
        return self.onset_s <= last  # NaN: no

    def first_alarm_s(self, threshold: float) -> NDArray[np.float64]:
        """End of the first alarmed window at or after the onset ``(n_episodes,)``; inf: none.

        An alarm that was raised earlier and still stands counts from then on.
        """
        first = np.full(len(self.onset_s), np.inf)
        alarmed = (self.score >= threshold) & (self.end_s >= self.onset_s[self.episode])
        np.minimum.at(first, self.episode[alarmed], self.end_s[alarmed])
        return first


def alarm_score(proba: NDArray[np.float64], classes: Sequence[str]) -> NDArray[np.float64]:
    """The alarm score ``(n_windows,)`` of probabilities ``(n_windows, n_classes)``."""
    infected = [i for i, phase in enumerate(classes) if phase in INFECTED]
    return proba[:, infected].sum(axis=1)


def alarm_scores(
    predictor: Scored, classes: Sequence[str], length_s: float, stride_s: float
) -> AlarmScores:
    """A predictor's alarm scores; windows are ``length_s`` long, one every ``stride_s``."""
    windows = predictor.windows
    return AlarmScores(
        score=alarm_score(predictor.proba, classes),
        end_s=windows["start_s"].to_numpy() + length_s,
        clean=((windows["actual"] == CLEAN) & (windows["purity"] == 1.0)).to_numpy(),
        first=np.diff(predictor.episode, prepend=-1) != 0,
        episode=predictor.episode,
        onset_s=predictor.episodes["onset_s"].fill_null(math.nan).to_numpy(),
        stride_s=stride_s,
    )


def choose_threshold(val: AlarmScores, per_hour: float) -> tuple[float, FigureNote | None]:
    """The lowest score on validation down to which false alarms stay within a budget.

    Thresholds are tried from the highest score down, and the first that costs more ends the
    search: far below it, where alarms merge into one, their number would fall again.

    Returns:
        ``(threshold, note)``.
    """
    hours = float(val.clean_hours.sum())
    if not hours:
        return _DEFAULT_THRESHOLD, FigureNote(code="no_clean_validation")
    begins = val.clean & (val.score > val.before)  # alarmed first for thresholds in between
    candidates = np.unique(val.score)[::-1]
    reached, past = np.sort(val.score[begins]), np.sort(val.before[begins])
    events = (len(reached) - np.searchsorted(reached, candidates)) - (
        len(past) - np.searchsorted(past, candidates)
    )
    over = np.flatnonzero(events / hours > per_hour)
    within = int(over[0]) if len(over) else len(candidates)
    if not within:
        above = float(np.nextafter(candidates[0], np.inf))
        return above, FigureNote(code="over_budget_everywhere")
    strict = FigureNote(code="budget_allows_none", numbers={"hours": hours, "per_hour": 1 / hours})
    return float(candidates[within - 1]), strict if 1 / hours > per_hour else None


def median_statistic(delay_s: NDArray[np.float64], attacked: NDArray[np.bool_]) -> Statistic:
    """The shortest delay by which half of the attacked episodes are detected, ``(b,)``.

    Infinite where half never are; NaN where none was attacked.
    """
    here = np.flatnonzero(attacked)
    here = here[np.argsort(delay_s[here], kind="stable")]
    ordered = np.append(delay_s[here], np.nan)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        reached = np.cumsum(weights[:, here], axis=1)
        if not len(here):
            return np.full(len(weights), np.nan)
        total = reached[:, -1:]
        at = (reached < total / 2).sum(axis=1)
        return ordered[np.where(total[:, 0] > 0, at, len(here))]

    return statistic


def ratio_statistic(over: NDArray[np.float64], under: NDArray[np.float64]) -> Statistic:
    """A sum by another ``(b,)``, both over episodes; NaN where the lower is 0."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        above, below = weights @ over, weights @ under
        return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)

    return statistic


# Long, because it puts one document together, field by field.
def detection(
    test: AlarmScores,
    val: AlarmScores,
    episodes: pl.DataFrame,
    per_hour: float,
    bootstrap: EpisodeBootstrap,
    subject: Subject,
) -> Detection:
    """Threshold, false alarms, and per attacked episode the time to the first alarm.

    Args:
        episodes: the test episodes, one row each.
        per_hour: false alarms allowed on validation.
    """
    threshold, threshold_note = choose_threshold(val, per_hour)
    attacked = test.attacked()
    alarm_s = test.first_alarm_s(threshold)
    delay_s = alarm_s - test.onset_s
    detected = attacked & np.isfinite(alarm_s)
    hours = test.clean_hours
    false_alarms = test.by_episode(test.false_alarms(threshold))
    alarmed = test.by_episode(test.clean & (test.score >= threshold))
    statistics: dict[str, Statistic] = {
        "false_alarms_per_hour": ratio_statistic(false_alarms, hours),
        "clean_time_alarmed": ratio_statistic(alarmed, test.by_episode(test.clean)),
        "detected_share": ratio_statistic(detected.astype(np.float64), attacked.astype(np.float64)),
        "median_delay_s": median_statistic(delay_s, attacked),
    }
    replicates = bootstrap.replicates_of(statistics)
    resampled: dict[str, Figure] = {
        name: figure(subject, name, float(bootstrap.observed(statistic)), replicates[name])
        for name, statistic in statistics.items()
    }
    n_false, n_attacked = int(false_alarms.sum()), int(attacked.sum())
    test_hours, val_hours = float(hours.sum()), float(val.clean_hours.sum())
    mended = _mended(resampled, n_false, test_hours, n_attacked, replicates["median_delay_s"])
    val_events = int(val.false_alarms(threshold).sum())
    return Detection(
        alarm_phases=list(INFECTED),
        budget_per_hour=per_hour,
        threshold=figure(subject.on("val"), "alarm_threshold", threshold, note=threshold_note),
        clean_hours={"val": val_hours, "test": test_hours},
        false_alarms={"val": val_events, "test": n_false},
        val_false_alarms_per_hour=figure(
            subject.on("val"),
            "false_alarms_per_hour",
            val_events / val_hours if val_hours else math.nan,
            note=FigureNote(code="chosen_on_these" if val_hours else "no_clean_validation"),
        ),
        **{name: each.model_copy(update=mended[name]) for name, each in resampled.items()},
        attacked_episodes=n_attacked,
        detected_episodes=int(detected.sum()),
        attacks_after_last_window=int((~np.isnan(test.onset_s) & ~attacked).sum()),
        undetected=episodes["episode_id"].to_numpy()[attacked & ~detected].tolist(),
        episodes=[
            AttackedEpisode(
                **episodes.select("episode_id", "host_id", "profile").row(i, named=True),
                onset_s=test.onset_s[i],
                first_alarm_s=alarm_s[i] if detected[i] else None,
                delay_s=delay_s[i] if detected[i] else None,
            )
            for i in np.flatnonzero(attacked).tolist()
        ],
    )


def _mended(
    figures: dict[str, Figure],
    n_false: int,
    hours: float,
    n_attacked: int,
    delays: NDArray[np.float64],
) -> dict[str, dict[str, Any]]:
    """Notes on null figures and bounds, and wider bounds where resampling is too narrow.

    Resampling what never happened gives nothing, and what happened once or twice hardly more. So
    false alarms have the wider of resampling's and the exact Poisson bounds (Garwood 1936), and
    detections that never or always happened the exact binomial one (Clopper and Pearson 1934), as
    if episodes were independent.
    """
    tail = (1 - LEVEL) / 2
    false, share = figures["false_alarms_per_hour"], figures["detected_share"]
    median = figures["median_delay_s"]
    mended: dict[str, dict[str, Any]] = {name: {} for name in figures}
    if not hours:
        for name in ("false_alarms_per_hour", "clean_time_alarmed"):
            mended[name] = {"note": FigureNote(code="no_clean_time")}
    else:
        low = chi2.ppf(tail, 2 * n_false) / 2 / hours if n_false else 0.0
        high = chi2.ppf(1 - tail, 2 * n_false + 2) / 2 / hours
        mended["false_alarms_per_hour"] = {
            "low": float(low if false.low is None else min(low, false.low)),
            "high": float(high if false.high is None else max(high, false.high)),
            "note": FigureNote(code="poisson_bounds", numbers={"events": n_false, "hours": hours}),
        }
    if figures["clean_time_alarmed"].value == 0:
        mended["clean_time_alarmed"] = {"high": None, "note": FigureNote(code="never_alarmed")}
    if not n_attacked:
        for name in ("detected_share", "median_delay_s"):
            mended[name] = {"note": FigureNote(code="no_attack")}
        return mended
    if share.value in (0, 1):
        exact = tail ** (1 / n_attacked)
        mended["detected_share"] = {"low": exact} if share.value else {"high": 1 - exact}
        mended["detected_share"]["note"] = FigureNote(
            code="exact_binomial_bound", numbers={"episodes": n_attacked}
        )
    if median.value is None:
        mended["median_delay_s"] = {"note": FigureNote(code="half_undetected")}
    elif median.high is None:
        lost = {"share": float(np.isinf(delays).mean())}
        mended["median_delay_s"] = {
            "note": FigureNote(code="half_undetected_at_times", numbers=lost)
        }
    return mended
