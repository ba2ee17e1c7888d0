"""Detection: what a model is worth as an alarm, to whoever has to answer it.

The alarm score of a window is the probability that the machine is being or has been taken over
(``INFECTED``). A window is alarmed where its score reaches the threshold, and that is known at the
window's end. The threshold is chosen on validation; everything else is computed on test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import chi2

from episodes.format import CLEAN, INFECTED
from evaluation.figures import LEVEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evaluation.bootstrap import EpisodeBootstrap, Statistic
    from evaluation.figures import Subject
    from evaluation.scores import Scored

_NO_THRESHOLD = 0.5  # where validation cannot tell
_S_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Watch:
    """One predictor's alarm scores over one split, in order of episode and window."""

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
        """The score of the window before, ``(n_windows,)``; -inf where there is none."""
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
        found = np.full(len(self.onset_s), np.inf)
        heard = (self.score >= threshold) & (self.end_s >= self.onset_s[self.episode])
        np.minimum.at(found, self.episode[heard], self.end_s[heard])
        return found


def alarm_score(proba: NDArray[np.float64], classes: Sequence[str]) -> NDArray[np.float64]:
    """The alarm score ``(n_windows,)`` of probabilities ``(n_windows, n_classes)``."""
    infected = [i for i, phase in enumerate(classes) if phase in INFECTED]
    return proba[:, infected].sum(axis=1)


def watch(own: Scored, classes: Sequence[str], length_s: float, stride_s: float) -> Watch:
    """A predictor's scores as an alarm; windows are ``length_s`` long, one every ``stride_s``."""
    windows = own.windows
    return Watch(
        score=alarm_score(own.proba, classes),
        end_s=windows["start_s"].to_numpy() + length_s,
        clean=((windows["actual"] == CLEAN) & (windows["purity"] == 1.0)).to_numpy(),
        first=np.diff(own.episode, prepend=-1) != 0,
        episode=own.episode,
        onset_s=own.episodes["onset_s"].fill_null(math.nan).to_numpy(),
        stride_s=stride_s,
    )


def choose_threshold(val: Watch, per_hour: float) -> tuple[float, str | None]:
    """The lowest score of validation down to which false alarms stay within a budget.

    Thresholds are tried from the highest score down, and the first that costs more ends the
    search: far below it, where alarms run into one, their number would fall again.

    Returns:
        ``(threshold, what to know of it)``.
    """
    hours = float(val.clean_hours.sum())
    if not hours:
        return _NO_THRESHOLD, (
            f"validation has no clean time to choose a threshold on; {_NO_THRESHOLD:g} is used"
        )
    begins = val.clean & (val.score > val.before)  # alarmed first for thresholds in between
    candidates = np.unique(val.score)[::-1]
    reached, past = np.sort(val.score[begins]), np.sort(val.before[begins])
    events = (len(reached) - np.searchsorted(reached, candidates)) - (
        len(past) - np.searchsorted(past, candidates)
    )
    over = np.flatnonzero(events / hours > per_hour)
    within = int(over[0]) if len(over) else len(candidates)
    if not within:
        return float(np.nextafter(candidates[0], np.inf)), (
            "every threshold costs more false alarms on validation than the budget allows; this "
            "one lies above every score there"
        )
    one = 1 / hours
    note = (
        f"validation has {hours:.3g} clean hours: one false alarm there is {one:.3g} an hour, so "
        "the budget allows none"
        if one > per_hour
        else None
    )
    return float(candidates[within - 1]), note


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


def detection(
    test: Watch, val: Watch, own: Scored, per_hour: float, bootstrap: EpisodeBootstrap,
    subject: Subject,
) -> dict[str, Any]:  # fmt: skip
    """Threshold, false alarms, and per attacked episode the time to the first alarm."""
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
    figures = {
        name: subject.figure(name, float(bootstrap.observed(statistic)), replicates[name])
        for name, statistic in statistics.items()
    }
    _mend(figures, float(hours.sum()), int(attacked.sum()), replicates["median_delay_s"])
    val_hours = float(val.clean_hours.sum())
    val_events = int(val.false_alarms(threshold).sum())
    return {
        "alarm_phases": list(INFECTED),
        "budget_per_hour": per_hour,
        "threshold": subject.on("val").figure("alarm_threshold", threshold, note=threshold_note),
        "clean_hours": {"val": val_hours, "test": float(hours.sum())},
        "false_alarms": {"val": val_events, "test": int(false_alarms.sum())},
        "val_false_alarms_per_hour": subject.on("val").figure(
            "false_alarms_per_hour",
            val_events / val_hours if val_hours else math.nan,
            note="the threshold was chosen on these" if val_hours else "no clean time there",
        ),
        **figures,
        "attacked_episodes": int(attacked.sum()),
        "detected_episodes": int(detected.sum()),
        "attacks_after_last_window": int((~np.isnan(test.onset_s) & ~attacked).sum()),
        "undetected": own.episodes["episode_id"].to_numpy()[attacked & ~detected].tolist(),
        "episodes": [
            {
                "episode_id": own.episodes["episode_id"][i],
                "host_id": own.episodes["host_id"][i],
                "profile": own.episodes["profile"][i],
                "onset_s": float(test.onset_s[i]),
                "first_alarm_s": float(alarm_s[i]) if detected[i] else None,
                "delay_s": float(delay_s[i]) if detected[i] else None,
            }
            for i in np.flatnonzero(attacked).tolist()
        ],
    }


def _poisson(events: int, tail: float) -> tuple[float, float]:
    """Exact bounds of the mean of a Poisson count."""
    low = chi2.ppf(tail, 2 * events) / 2 if events else 0.0
    return float(low), float(chi2.ppf(1 - tail, 2 * events + 2) / 2)


def _mend(
    figures: dict[str, dict[str, Any]], hours: float, attacked: int, delays: NDArray[np.float64]
) -> None:
    """Say why a figure or a bound is null, and widen what resampling makes too narrow.

    Resampling what never happened gives nothing, and what happened once or twice hardly more. So
    false alarms have the wider of resampling's and the exact Poisson bounds (Garwood 1936), and
    detections that never or always happened the exact binomial one (Clopper and Pearson 1934), as
    if episodes were independent.
    """
    tail = (1 - LEVEL) / 2
    false, alarmed = figures["false_alarms_per_hour"], figures["clean_time_alarmed"]
    share, median = figures["detected_share"], figures["median_delay_s"]
    if not hours:
        false["note"] = alarmed["note"] = (
            "the test split has no time that is clean from end to end of a window: false alarms "
            "cannot be counted"
        )
    else:
        events = round(false["value"] * hours)
        low, high = (bound / hours for bound in _poisson(events, tail))
        drawn_low, drawn_high = false["low"], false["high"]
        false["low"] = low if drawn_low is None else min(low, drawn_low)
        false["high"] = high if drawn_high is None else max(high, drawn_high)
        false["note"] = (
            f"{events} in {hours:.3g} clean hours; bounds are the wider of resampling's and the "
            "exact Poisson ones"
        )
    if alarmed["value"] == 0:
        alarmed["high"] = None
        alarmed["note"] = "never alarmed while clean: resampling gives no upper bound"
    if not attacked:
        share["note"] = median["note"] = "no test episode is attacked: nothing could be detected"
        return
    if share["value"] in (0, 1):
        exact = tail ** (1 / attacked)
        share |= {"low": exact} if share["value"] else {"high": 1 - exact}
        which = "all" if share["value"] else "none"
        bound = "lower" if share["value"] else "upper"
        share["note"] = f"{which} of {attacked}; the {bound} bound is the exact binomial one"
    if median["value"] is None:
        median["note"] = "infinite: at least half of the attacked episodes go undetected"
    elif median["high"] is None:
        lost = float(np.isinf(delays).mean())
        median["note"] = f"no upper bound: half go undetected in {lost:.0%} of the replicates"
