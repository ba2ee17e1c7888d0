"""Detection: how good a model is as an alarm.

The alarm score of a window is the probability that the machine is being or has been taken over
(``INFECTED``). A window raises the alarm if its score reaches the threshold, at the window's end;
the alarm stands until a score falls below ``clear_ratio`` of the threshold. The rule is chosen on
validation; everything else is computed on test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from episodes.format import CLEAN, INFECTED
from episodes.jit import jit
from evaluation.bootstrap import EpisodeBootstrap, Statistic
from evaluation.documents import (
    ANY,
    INTERVAL_LEVEL,
    NONE,
    AttackedEpisode,
    CleanTime,
    Detection,
    Estimate,
    Figure,
    FigureNote,
    OperatingCurve,
    OperatingPoint,
    Subject,
)
from evaluation.figures import ReportPolicy, figure, finite_or_none, interval
from evaluation.scores import SplitPredictions
from models.alarm import LEAST, apply_hysteresis, attack_phase_mask

_DEFAULT_THRESHOLD = 0.5  # without clean time on validation
_MOST_TRIED = 1000  # thresholds
_S_PER_HOUR = 3600.0
MIN_VALIDATION_HOURS = 0.5  # clean; a threshold that rests on less is provisional
MAX_CURVE_POINTS = 30  # of an operating curve
LISTED = 1000  # attacked episodes of a report: it must not grow with the store
NO_JOB = ""  # what a window has where no job is under way


@dataclass(frozen=True)
class AlarmScores:
    """One predictor's alarm scores on one split, ordered by episode and window."""

    score: NDArray[np.float64]  # (n_windows,)
    end_s: NDArray[np.float64]  # (n_windows,) when the score is known
    clean: NDArray[np.bool_]  # (n_windows,) clean from end to end
    first: NDArray[np.bool_]  # (n_windows,) of its episode
    episode: NDArray[np.int64]  # (n_windows,)
    onset_s: NDArray[np.float64]  # (n_episodes,) NaN: never attacked
    job: NDArray[np.str_]  # (n_windows,) benign job under way
    stride_s: float
    clear_ratio: float = 1.0  # of the threshold, below which a standing alarm is cleared

    @property
    def clean_hours(self) -> NDArray[np.float64]:
        """Clean time by episode ``(n_episodes,)``: each decision stands for a stride."""
        return self.by_episode(self.clean) * (self.stride_s / _S_PER_HOUR)

    def by_episode(self, windows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """How many windows of each episode, ``(n_episodes,)``."""
        counts = np.bincount(self.episode[windows], minlength=len(self.onset_s))
        return counts.astype(np.float64)

    def alarmed(self, threshold: float) -> NDArray[np.bool_]:
        """The windows ``(n_windows,)`` at which the alarm stands."""
        return apply_hysteresis(self.score, threshold, self.clear_ratio * threshold, self.first)

    def false_alarms(self, threshold: float) -> NDArray[np.bool_]:
        """The windows ``(n_windows,)`` at which a false alarm begins.

        Consecutive alarmed windows are one alarm; it is false where its first window is clean.
        """
        alarmed = self.alarmed(threshold)
        stood = ~self.first & np.roll(alarmed, 1)
        return self.clean & alarmed & ~stood

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
        alarmed = self.alarmed(threshold) & (self.end_s >= self.onset_s[self.episode])
        np.minimum.at(first, self.episode[alarmed], self.end_s[alarmed])
        return first

    def detected(self, threshold: float) -> int:
        """How many attacked episodes are alarmed at or after their onset."""
        return int((self.attacked() & np.isfinite(self.first_alarm_s(threshold))).sum())


def alarm_score(proba: NDArray[np.float64], classes: Sequence[str]) -> NDArray[np.float64]:
    """The alarm score ``(n_windows,)`` of probabilities ``(n_windows, n_classes)``."""
    return proba[:, attack_phase_mask(classes)].sum(axis=1)


def alarm_scores(
    predictor: SplitPredictions, classes: Sequence[str], length_s: float, stride_s: float
) -> AlarmScores:
    """A predictor's alarm scores; windows are ``length_s`` long, one every ``stride_s``."""
    windows = predictor.windows
    return AlarmScores(
        score=alarm_score(predictor.proba, classes),
        end_s=windows["start_s"].to_numpy() + length_s,
        clean=((windows["actual"] == CLEAN) & (windows["purity"] == 1.0)).to_numpy(),
        first=predictor.first,
        episode=predictor.episode,
        onset_s=predictor.episodes["onset_s"].fill_null(math.nan).to_numpy(),
        job=windows["job"].to_numpy().astype(np.str_),
        stride_s=stride_s,
    )


def choose_threshold(val: AlarmScores, policy: ReportPolicy) -> tuple[float, FigureNote | None]:
    """A threshold with room on both sides, chosen on validation.

    Half way, in log-odds, between the lowest threshold down to which alarms stay within both
    budgets and the highest that still finds every attack which that one finds. Another day moves
    scores both ways; either end would leave no room on its side.

    Thresholds are tried from the highest score down, and the first over budget ends the search:
    far below it, where alarms merge into one, their number would fall again.

    Returns:
        ``(threshold, note)``.
    """
    hours, per_hour = float(val.clean_hours.sum()), policy.false_alarms_per_hour
    if not hours:
        return _DEFAULT_THRESHOLD, FigureNote(code="no_clean_validation")
    within: list[float] = []
    candidates = _candidates(val, policy.clean_time_alarmed)
    for threshold in candidates.tolist():
        over_rate = val.false_alarms(threshold).sum() / hours > per_hour
        if over_rate or val.alarmed(threshold)[val.clean].mean() > policy.clean_time_alarmed:
            break
        within.append(threshold)
    if not within:
        above = float(np.nextafter(candidates[0], np.inf))
        return above, FigureNote(code="over_budget_everywhere")
    lowest = within[-1]
    found = val.detected(lowest)
    highest = next(t for t in within if found <= val.detected(t)) if found else lowest
    strict = FigureNote(code="budget_allows_none", numbers={"hours": hours, "per_hour": 1 / hours})
    return _half_way(lowest, highest), strict if 1 / hours > per_hour else None


def _half_way(low: float, high: float) -> float:
    """The mean of two probabilities in log-odds, none taken closer to 0 or 1 than ``LEAST``.

    Where both are closer, that mean would lie outside; the nearer of the two is taken then.
    """
    odds = np.clip([low, high], LEAST, 1 - LEAST)
    return float(np.clip(1 / (1 + np.exp(-np.log(odds / (1 - odds)).mean())), low, high))


def _candidates(val: AlarmScores, share: float) -> NDArray[np.float64]:
    """Scores of validation, from the highest down to the first that surely alarms too much.

    Of more than ``_MOST_TRIED``, as many are taken evenly by rank.
    """
    clean = np.sort(val.score[val.clean])[::-1]
    rank = int(share * len(clean)) + 1  # this many and one more would be alarmed
    candidates = np.unique(val.score)[::-1]
    candidates = candidates[candidates >= (clean[rank] if rank < len(clean) else -np.inf)]
    ranks = np.linspace(0, len(candidates) - 1, min(len(candidates), _MOST_TRIED))
    return candidates[ranks.round().astype(int)]


def median_delay_statistic(delay_s: NDArray[np.float64], attacked: NDArray[np.bool_]) -> Statistic:
    """The shortest delay by which half of the attacked episodes are detected, ``(b,)``.

    Infinite where half never are; NaN where none was attacked.
    """
    here = np.flatnonzero(attacked)
    here = here[np.argsort(delay_s[here], kind="stable")]
    ordered = np.append(delay_s[here], np.nan)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        at = np.empty(len(weights), dtype=np.int64)
        _half_way_rows(weights, here, at)
        return ordered[at]

    return statistic


@jit
def _half_way_rows(
    weights: NDArray[np.float64], here: NDArray[np.int64], at: NDArray[np.int64]
) -> None:
    """By replicate the first position in ``here`` at which half of their weight is reached.

    Args:
        at: ``(b,)``, written; ``len(here)`` where there is no weight.
    """
    for row in range(len(weights)):
        total = 0.0
        for episode in here:
            total += weights[row, episode]
        at[row] = len(here)
        reached = 0.0
        if total > 0:
            for position in range(len(here)):
                reached += weights[row, here[position]]
                if reached >= total / 2:
                    at[row] = position
                    break


def ratio_statistic(over: NDArray[np.float64], under: NDArray[np.float64]) -> Statistic:
    """A sum by another ``(b,)`` or ``(b, m)``, both over episodes; NaN where the lower is 0."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        above, below = weights @ over, weights @ under
        return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)

    return statistic


# Long, because it puts one document together, field by field.
def detection(
    test: AlarmScores,
    val: AlarmScores,
    chosen: tuple[float, FigureNote | None],
    episodes: pl.DataFrame,
    policy: ReportPolicy,
    bootstrap: EpisodeBootstrap,
    subject: Subject,
) -> Detection:
    """False alarms, and per attacked episode the time to the first alarm.

    Args:
        chosen: the threshold and a note on it, chosen on ``val``.
        episodes: the test episodes, one row each.
        policy: the budgets that hold on validation.
    """
    threshold, threshold_note = chosen
    attacked = test.attacked()
    alarm_s = test.first_alarm_s(threshold)
    delay_s = alarm_s - test.onset_s
    detected = attacked & np.isfinite(alarm_s)
    statistics: dict[str, Statistic] = {
        "detected_share": ratio_statistic(detected.astype(np.float64), attacked.astype(np.float64)),
        "median_delay_s": median_delay_statistic(delay_s, attacked),
    }
    replicates = bootstrap.replicates_of(statistics)
    resampled: dict[str, Figure] = {
        name: figure(subject, name, float(bootstrap.observed(statistic)), replicates[name])
        for name, statistic in statistics.items()
    }
    n_attacked = int(attacked.sum())
    mended = _mended(resampled, n_attacked, replicates["median_delay_s"])
    whole, *parts = clean_time(test, threshold, bootstrap, subject)
    val_events, val_hours = int(val.false_alarms(threshold).sum()), float(val.clean_hours.sum())
    return Detection(
        alarm_phases=list(INFECTED),
        budget_per_hour=policy.false_alarms_per_hour,
        budget_clean_time=policy.clean_time_alarmed,
        threshold=figure(subject.on("val"), "alarm_threshold", threshold, note=threshold_note),
        clear_below=test.clear_ratio * threshold,
        provisional=is_provisional(val_hours),
        clean_hours={"val": val_hours, "test": whole.hours},
        false_alarms={"val": val_events, "test": whole.false_alarms},
        val_false_alarms_per_hour=figure(
            subject.on("val"),
            "false_alarms_per_hour",
            val_events / val_hours if val_hours else math.nan,
            note=FigureNote(code="chosen_on_these" if val_hours else "no_clean_validation"),
        ),
        false_alarms_per_hour=whole.false_alarms_per_hour,
        clean_time_alarmed=whole.clean_time_alarmed,
        by_job=parts,
        **{name: each.model_copy(update=mended[name]) for name, each in resampled.items()},
        operating_curve=operating_curve(test, bootstrap, policy.seed),
        attacked_episodes=n_attacked,
        detected_episodes=int(detected.sum()),
        attacks_after_last_window=int((~np.isnan(test.onset_s) & ~attacked).sum()),
        undetected=episodes["episode_id"].to_numpy()[_thinned(attacked & ~detected)].tolist(),
        episodes=[
            AttackedEpisode(
                **episodes.select("episode_id", "host_id", "profile").row(i, named=True),
                onset_s=test.onset_s[i],
                first_alarm_s=alarm_s[i] if detected[i] else None,
                delay_s=delay_s[i] if detected[i] else None,
            )
            for i in _thinned(attacked).tolist()
        ],
    )


def _thinned(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows of the chosen episodes; of more than ``LISTED`` as many, evenly by id."""
    rows = np.flatnonzero(chosen)
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), LISTED)).round().astype(int)]


def is_provisional(val_hours: float) -> bool:
    """Whether a threshold rests on too little clean time of validation."""
    return val_hours < MIN_VALIDATION_HOURS


def _mended(
    figures: dict[str, Figure], n_attacked: int, delays: NDArray[np.float64]
) -> dict[str, dict[str, Any]]:
    """Notes on null figures and bounds, and wider bounds where resampling is too narrow."""
    share, median = figures["detected_share"], figures["median_delay_s"]
    mended: dict[str, dict[str, Any]] = {name: {} for name in figures}
    if not n_attacked:
        return {name: {"note": FigureNote(code="no_attack")} for name in figures}
    if share.value in (0, 1):
        low, high = detected_bounds(share.value, n_attacked, share.low, share.high)
        note = FigureNote(code="exact_binomial_bound", numbers={"episodes": n_attacked})
        mended["detected_share"] = {"low": low, "high": high, "note": note}
    if median.value is None:
        mended["median_delay_s"] = {"note": FigureNote(code="half_undetected")}
    elif median.high is None and len(delays):
        lost = {"share": float(np.isinf(delays).mean())}
        mended["median_delay_s"] = {
            "note": FigureNote(code="half_undetected_at_times", numbers=lost)
        }
    return mended


# --- clean time ---------------------------------------------------------------------------------


def clean_time(
    test: AlarmScores, threshold: float, bootstrap: EpisodeBootstrap, subject: Subject
) -> list[CleanTime]:
    """Alarms in all clean time, in that with any job, in that without one, and by job.

    A false alarm belongs to the job of its first window. The whole has an empty ``job``.
    """
    busy = test.job != NO_JOB
    parts = {"": np.ones(len(busy), dtype=bool), ANY: busy, NONE: ~busy}
    for job in np.unique(test.job[test.clean & busy]).tolist():
        parts[f'"{job}"' if job in parts else job] = test.job == job  # a job may have any name

    def by_part(windows: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.stack([test.by_episode(windows & part) for part in parts.values()], axis=1)

    clean = by_part(test.clean)
    hours = clean * (test.stride_s / _S_PER_HOUR)
    false_alarms = by_part(test.false_alarms(threshold))
    alarmed = by_part(test.clean & test.alarmed(threshold))
    replicates = bootstrap.replicates_of(
        {"rate": ratio_statistic(false_alarms, hours), "share": ratio_statistic(alarmed, clean)}
    )
    return [
        CleanTime(
            job=job,
            hours=float(hours[:, i].sum()),
            false_alarms=int(false_alarms[:, i].sum()),
            false_alarms_per_hour=_rate(
                subject,
                int(false_alarms[:, i].sum()),
                float(hours[:, i].sum()),
                replicates["rate"][:, i],
                {"job": job} if job else {},
            ),
            clean_time_alarmed=_alarmed(
                subject,
                float(alarmed[:, i].sum()),
                float(clean[:, i].sum()),
                replicates["share"][:, i],
                {"job": job} if job else {},
            ),
        )
        for i, job in enumerate(parts)
    ]


def _rate(
    subject: Subject,
    n_false: int,
    hours: float,
    replicates: NDArray[np.float64],
    where: dict[str, str],
) -> Figure:
    """False alarms per hour, with exact bounds where those of resampling are narrower."""
    if not hours:
        note = FigureNote(code="no_clean_time")
        return figure(subject, "false_alarms_per_hour", math.nan, where=where, note=note)
    low, high = rate_bounds(n_false, hours, replicates)
    note = FigureNote(code="poisson_bounds", numbers={"events": n_false, "hours": hours})
    return figure(
        subject, "false_alarms_per_hour", n_false / hours, replicates,
        low=low, high=high, where=where, note=note,
    )  # fmt: skip


def _alarmed(
    subject: Subject,
    alarmed: float,
    clean: float,
    replicates: NDArray[np.float64],
    where: dict[str, str],
) -> Figure:
    """The share of clean time that is alarmed."""
    if not clean:
        note = FigureNote(code="no_clean_time")
        return figure(subject, "clean_time_alarmed", math.nan, where=where, note=note)
    never: dict[str, Any] = {"high": None, "note": FigureNote(code="never_alarmed")}
    return figure(
        subject, "clean_time_alarmed", alarmed / clean, replicates,
        where=where, **({} if alarmed else never),
    )  # fmt: skip


def rate_bounds(n_false: int, hours: float, replicates: NDArray[np.float64]) -> tuple[float, float]:
    """The wider of resampling's and the exact Poisson bounds (Garwood 1936).

    Resampling what never happened gives nothing, and what happened once or twice hardly more.
    """
    # here, because every command imports this module. Half a quantile of chi-squared is one of
    # gamma; importing scipy.stats takes a second
    from scipy.special import gammaincinv

    tail = (1 - INTERVAL_LEVEL) / 2
    exact = (
        float(gammaincinv(n_false, tail) / hours) if n_false else 0.0,
        float(gammaincinv(n_false + 1, 1 - tail) / hours),
    )
    drawn = interval(replicates)
    return (
        min(exact[0], drawn[0]) if math.isfinite(drawn[0]) else exact[0],
        max(exact[1], drawn[1]) if math.isfinite(drawn[1]) else exact[1],
    )


def detected_bounds(
    share: float, n_attacked: int, low: float | None, high: float | None
) -> tuple[float | None, float | None]:
    """Where all or none are detected, one bound is exact (Clopper and Pearson 1934).

    As if episodes were independent.
    """
    exact = ((1 - INTERVAL_LEVEL) / 2) ** (1 / n_attacked)
    return (exact if share == 1 else low), (1 - exact if share == 0 else high)


# --- the operating curve ------------------------------------------------------------------------


def operating_curve(test: AlarmScores, bootstrap: EpisodeBootstrap, seed: int) -> OperatingCurve:
    """What every threshold would give on test, and what random scores would."""
    random = np.random.default_rng([seed, len(test.score)]).random(len(test.score))
    return OperatingCurve(
        points=_points(test, bootstrap), random=_points(replace(test, score=random), bootstrap)
    )


def _thresholds(test: AlarmScores) -> NDArray[np.float64]:
    """From one without a false alarm down to one that alarms all clean time; denser above."""
    scores = np.sort(test.score[test.clean] if test.clean.any() else test.score)[::-1]
    ranks = np.unique(np.geomspace(1, len(scores), MAX_CURVE_POINTS - 1).round().astype(int))
    above = np.nextafter(scores[0], np.inf)
    return np.unique(np.append(scores[ranks - 1], above))[::-1]


def _points(test: AlarmScores, bootstrap: EpisodeBootstrap) -> list[OperatingPoint]:
    thresholds = _thresholds(test)
    attacked = test.attacked()
    alarm_s = np.stack([test.first_alarm_s(t) for t in thresholds], axis=1)
    false_alarms, alarmed = (
        np.stack([test.by_episode(windows(t)) for t in thresholds], axis=1)
        for windows in (test.false_alarms, lambda t: test.clean & test.alarmed(t))
    )

    def of_all(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.repeat(values[:, None], len(thresholds), axis=1)

    hours, clean = test.clean_hours, test.by_episode(test.clean)
    detected = np.isfinite(alarm_s) & attacked[:, None]
    statistics: dict[Any, Statistic] = {
        "rate": ratio_statistic(false_alarms, of_all(hours)),
        "alarmed": ratio_statistic(alarmed, of_all(clean)),
        "detected": ratio_statistic(detected.astype(float), of_all(attacked.astype(float))),
    } | {
        i: median_delay_statistic(alarm_s[:, i] - test.onset_s, attacked)
        for i in range(len(thresholds))
    }
    drawn = bootstrap.replicates_of(statistics)
    observed = {name: bootstrap.observed(statistic) for name, statistic in statistics.items()}
    n_attacked, n_hours = int(attacked.sum()), float(hours.sum())

    def estimate(name: str, i: int) -> Estimate:
        value = float(observed[name][i])
        low, high = (finite_or_none(bound) for bound in interval(drawn[name][:, i]))
        if name == "rate" and n_hours:
            low, high = rate_bounds(int(false_alarms[:, i].sum()), n_hours, drawn[name][:, i])
        if name == "detected" and n_attacked:
            low, high = detected_bounds(value, n_attacked, low, high)
        return Estimate(value=finite_or_none(value), low=low, high=high)

    def delay(i: int) -> Estimate:
        value, low, high = map(finite_or_none, (float(observed[i]), *interval(drawn[i])))
        return Estimate(value=value, low=low, high=high)

    return [
        OperatingPoint(
            threshold=float(threshold),
            false_alarms_per_hour=estimate("rate", i),
            clean_time_alarmed=estimate("alarmed", i),
            detected_share=estimate("detected", i),
            median_delay_s=delay(i),
        )
        for i, threshold in enumerate(thresholds)
    ]
