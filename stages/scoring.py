"""Scores of one episode: what a checkpoint, its alarm rule and its likeness say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from evaluation.detection import alarm_score
from evaluation.scores import phases_of
from features.relative import episode_inputs
from models.novelty import ALPHA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from features.extraction import Extracted
    from features.registry import Layout
    from models.alarm import AlarmRule
    from models.base import Inputs
    from models.checkpoint import Checkpoint
    from models.novelty import Likeness

TOP = 5  # channels that are named for a window


@dataclass(frozen=True)
class OverTime:
    """What an alarm rule makes of consecutive windows."""

    rule: AlarmRule
    proba: NDArray[np.float64]  # (n_windows, n_phases), filtered
    score: NDArray[np.float64]  # (n_windows,), what the threshold is compared with
    alarm: NDArray[np.bool_]  # (n_windows,)


@dataclass(frozen=True)
class Unlike:
    """How far consecutive windows are from training."""

    likeness: Likeness
    score: NDArray[np.float64]  # (n_windows,), distance
    p: NDArray[np.float64]  # (n_windows,), p value of the episode so far

    @property
    def unlike(self) -> NDArray[np.bool_]:
        """Whether the episode so far is unlike training ``(n_windows,)``."""
        return self.p <= ALPHA


@dataclass(frozen=True)
class Scores:
    """Of the windows of one episode, in order."""

    phases: tuple[str, ...]
    start_s: NDArray[np.float64]  # (n_windows,)
    labelled: Sequence[str]  # (n_windows,)
    proba: NDArray[np.float32]  # (n_windows, n_phases), as the model gives them
    over_time: OverTime | None  # None: the checkpoint has no alarm rule
    unlike_training: Unlike | None  # None: there is no likeness
    channels: tuple[str, ...]
    why: NDArray[np.float64] | None  # (n_windows, n_channels), for the phase; None: not asked for

    def __len__(self) -> int:
        return len(self.start_s)

    @property
    def phase(self) -> list[str]:
        """The likeliest phase of every window."""
        return phases_of(self.proba, self.phases)

    @property
    def filtered(self) -> list[str] | None:
        """The likeliest phase given all windows so far."""
        return None if self.over_time is None else phases_of(self.over_time.proba, self.phases)

    @property
    def alarm(self) -> NDArray[np.bool_] | None:
        """Whether the alarm stands at each window."""
        return None if self.over_time is None else self.over_time.alarm

    @property
    def unlike(self) -> NDArray[np.bool_] | None:
        """Whether the episode is unlike training, given all windows so far."""
        return None if self.unlike_training is None else self.unlike_training.unlike

    @property
    def alarm_score(self) -> NDArray[np.float64]:
        """P(infecting) + P(infected_running) of each window by itself."""
        return alarm_score(self.proba.astype(float), self.phases)

    @property
    def first_alarm_s(self) -> float | None:
        """Start of the first window with an alarm."""
        if self.alarm is None or not self.alarm.any():
            return None
        return float(self.start_s[self.alarm.argmax()])

    def arguments(self, window: int, top: int = TOP) -> list[tuple[str, float]]:
        """The channels that argue most for a window's phase, and how much; at most ``top``."""
        if self.why is None:
            return []
        row = self.why[window]
        return [(self.channels[i], float(row[i])) for i in np.argsort(-row)[:top] if row[i] > 0]

    def contributions(self) -> pl.DataFrame:
        """``window, start_s, phase, channel, contribution``: of each window the largest first."""
        assert self.why is not None, "score the episode with explain=True"
        n = len(self.channels)
        return pl.DataFrame(
            {
                "window": np.repeat(np.arange(len(self)), n),
                "start_s": np.repeat(self.start_s, n),
                "phase": [phase for phase in self.phase for _ in range(n)],
                "channel": list(self.channels) * len(self),
                "contribution": self.why.ravel(),
            },
            schema_overrides={"phase": pl.String, "channel": pl.String},
        ).sort("window", "contribution", descending=[False, True], maintain_order=True)

    def table(self) -> pl.DataFrame:
        """One row per window, with the columns of the asset ``predictions``."""
        table = pl.DataFrame(
            {
                "window": np.arange(len(self)),
                "start_s": self.start_s,
                "labelled": list(self.labelled),
            },
            schema_overrides={"labelled": pl.String},
        )
        return table.with_columns(
            *scored_columns(self.phases, self.proba, self.over_time),
            *unlike_columns(self.unlike_training, len(self)),
        )


def scored_columns(
    phases: tuple[str, ...], proba: NDArray, over_time: OverTime | None
) -> list[pl.Series]:
    """``predicted, p_<phase>…``, and with a rule ``filtered, f_<phase>…, alarm``."""
    columns = [
        pl.Series("predicted", phases_of(proba, phases), pl.String),
        *(pl.Series(f"p_{phase}", proba[:, i]) for i, phase in enumerate(phases)),
    ]
    if over_time is not None:
        columns += [
            pl.Series("filtered", phases_of(over_time.proba, phases), pl.String),
            *(pl.Series(f"f_{phase}", over_time.proba[:, i]) for i, phase in enumerate(phases)),
            pl.Series("alarm", over_time.alarm),
        ]
    return columns


def unlike_columns(found: Unlike | None, n_windows: int) -> list[pl.Series]:
    """``unlike_score, unlike_p, unlike``; null where there is no likeness."""
    if found is None:
        kinds = {"unlike_score": pl.Float64, "unlike_p": pl.Float64, "unlike": pl.Boolean}
        return [pl.Series(name, [None] * n_windows, kind) for name, kind in kinds.items()]
    return [
        pl.Series("unlike_score", found.score),
        pl.Series("unlike_p", found.p),
        pl.Series("unlike", found.unlike),
    ]


def unlike_training(
    likeness: Likeness, X: Inputs, first: NDArray[np.bool_] | None = None
) -> Unlike:
    """How far consecutive windows are from training.

    Args:
        X: the summary inputs that the likeness's mode sees.
        first: ``(n_windows,)``, where an episode begins; by default the first window alone.
    """
    scores = likeness.scores(X, first)
    return Unlike(likeness, scores, likeness.p_values(scores, first))


def carried_over(
    rule: AlarmRule, proba: NDArray, first: NDArray[np.bool_] | None = None
) -> OverTime:
    """A rule on the posteriors of consecutive windows.

    Args:
        first: ``(n_windows,)``, where an episode begins; by default the first window alone.
    """
    filtered = rule.filter(proba, first)
    score = rule.score(filtered)
    return OverTime(rule, filtered, score, rule.alarms(score, first))


def score_episode(
    checkpoint: Checkpoint,
    rule: AlarmRule | None,
    likeness: Likeness | None,
    extracted: Extracted,
    layout: Layout,
    *,
    explain: bool = False,
) -> Scores:
    """The scores of an episode's windows; without a rule and a likeness what the model says.

    Args:
        explain: also find which channels argue for each window's phase.
    """
    inputs = extracted.series, extracted.features, layout
    proba = checkpoint.predict_episode(*inputs)
    found = None
    if likeness is not None:
        seen = layout.keep_mask(likeness.mode, "summary")
        found = unlike_training(likeness, episode_inputs("summary", *inputs)[:, seen])
    return Scores(
        phases=layout.phases,
        start_s=extracted.windows.start_s,
        labelled=[str(label) for label in extracted.windows.label],
        proba=proba,
        over_time=None if rule is None else carried_over(rule, proba),
        unlike_training=found,
        channels=layout.channel_names,
        why=checkpoint.explain_episode(*inputs) if explain else None,
    )
