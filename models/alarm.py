"""Over time: a causal filter over a model's posteriors, and the rule that raises an alarm.

A window is ten seconds; an attack is a sequence. The forward filter of a hidden Markov model
(Rabiner, "A Tutorial on Hidden Markov Models", Proceedings of the IEEE 77, 1989) carries what was
seen before into the next window. It never looks ahead: later windows change nothing earlier. NumPy
only, because a device runs it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from episodes.format import INFECTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

LEAST = 1e-4
"""A posterior below this counts as this: one sure and wrong window must not decide a sequence."""
_LEAK = 1e-3  # of every transition's probability, so that no sequence of windows is impossible


class AlarmRule(BaseModel):
    """How a checkpoint's posteriors become filtered phases and alarms. Chosen on validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    checkpoint_id: str
    phases: tuple[str, ...]
    initial: tuple[float, ...]  # (n_phases,) of an episode's first window
    transitions: tuple[tuple[float, ...], ...]  # (n_phases, n_phases), from a window to the next
    temperature: Annotated[float, Field(gt=0)]  # of the posteriors, before filtering
    threshold: float  # of the filtered probability of INFECTED, from which the alarm is raised
    clear_ratio: Annotated[float, Field(gt=0, le=1)]  # of the threshold, below which it is cleared

    @property
    def id(self) -> str:
        """sha256 of the rule."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def text(self) -> str:
        return json.dumps(self.model_dump(), sort_keys=True, allow_nan=False)

    def filter(self, proba: NDArray, first: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Filtered phase probabilities ``(n_windows, n_phases)``.

        Args:
            proba: the model's, ``(n_windows, n_phases)``, consecutive windows.
            first: ``(n_windows,)``, where an episode begins; by default the first window alone.
        """
        initial, transitions = np.array(self.initial), np.array(self.transitions)
        likelihood = likelihoods(proba, self.temperature)
        return forward(likelihood, initial, transitions, first)

    def score(self, filtered: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability ``(n_windows,)`` that the machine is being or has been taken over."""
        return filtered[:, [i for i, p in enumerate(self.phases) if p in INFECTED]].sum(axis=1)

    def alarms(
        self, score: NDArray[np.float64], first: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_]:
        """Windows ``(n_windows,)`` at which the alarm stands."""
        return standing(score, self.threshold, self.clear_ratio * self.threshold, first)


def likelihoods(proba: NDArray, temperature: float) -> NDArray[np.float64]:
    """What each window says of its phase, up to a factor: ``p ** (1 / T)``.

    Training weighs every class alike, so a posterior has no class prior to divide out.
    """
    return np.maximum(proba.astype(np.float64), LEAST) ** (1 / temperature)


def forward(
    likelihood: NDArray[np.float64],
    initial: NDArray[np.float64],
    transitions: NDArray[np.float64],
    first: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """The forward recursion: probabilities ``(n_windows, n_phases)`` given all windows so far."""
    out = np.empty_like(likelihood)
    begins = np.zeros(len(likelihood), dtype=bool) if first is None else first.astype(bool)
    begins[:1] = True
    at = np.flatnonzero(begins)  # of every episode, the window in turn
    ends = np.append(at[1:], len(likelihood))
    prior = np.broadcast_to(initial, (len(at), len(initial)))
    while len(at):
        state = prior * likelihood[at]
        out[at] = state / state.sum(axis=1, keepdims=True)
        # not a matrix product: its last bits would depend on how many episodes there are
        prior = (out[at][:, :, None] * transitions).sum(axis=1)
        at = at + 1
        alive = at < ends
        at, ends, prior = at[alive], ends[alive], prior[alive]
    return out


def count_transitions(
    episodes: Iterable[Sequence[int]], n_phases: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(initial, transitions)`` counted on the labels of consecutive windows of each episode.

    Half an episode is added to every initial phase. A transition that never occurred keeps
    one in a thousand, so a sequence that training did not hold is unlikely, not impossible.
    """
    initial = np.full(n_phases, 0.5)
    counts = np.zeros((n_phases, n_phases))
    for labels in episodes:
        steps = np.asarray(labels, dtype=np.int64)
        if len(steps):
            initial[steps[0]] += 1
        np.add.at(counts, (steps[:-1], steps[1:]), 1)
    stays = np.eye(n_phases)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), stays)
    return initial / initial.sum(), (1 - _LEAK) * shares + _LEAK / n_phases


def standing(
    score: NDArray[np.float64],
    threshold: float,
    clear_below: float,
    first: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Where an alarm stands ``(n_windows,)``: from the threshold on, until it is cleared.

    Args:
        score: of consecutive windows.
        first: ``(n_windows,)``, where an episode begins; no alarm is carried into it.
    """
    begins = np.zeros(len(score), dtype=bool) if first is None else first.astype(bool)
    raised, cleared = score >= threshold, (score < clear_below) | begins
    # the last event decides: +1 raised, -1 cleared
    event = np.where(raised, 1, np.where(cleared, -1, 0))
    at = np.maximum.accumulate(np.where(event != 0, np.arange(len(score)), -1))
    return np.where(at >= 0, event[np.maximum(at, 0)], -1) > 0
