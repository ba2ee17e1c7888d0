"""Over time: a causal filter over a model's posteriors, and the rule that raises an alarm.

A window is ten seconds; an attack is a sequence. The forward filter of a hidden Markov model
(Rabiner, "A Tutorial on Hidden Markov Models", Proceedings of the IEEE 77, 1989) carries what was
seen before into the next window. It never looks ahead: later windows change nothing earlier. NumPy
only, because a device runs it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from episodes.format import INFECTED

LEAST = 1e-4
"""A posterior below this counts as this: one sure and wrong window must not decide a sequence."""
TEMPERATURES = (0.02, 1000)  # that a rule may have; ``evaluation.alarm_choice`` tries fewer
_LEAK = 1e-3  # of every transition's probability, so that no sequence of windows is impossible


@dataclass(frozen=True)
class AlarmRule:
    """How a checkpoint's posteriors become filtered phases and alarms. Chosen on validation.

    Raises:
        ValueError: a field has another shape, or a value that is not allowed.
    """

    checkpoint_id: str
    phases: tuple[str, ...]
    initial: tuple[float, ...]  # (n_phases,) of an episode's first window
    transitions: tuple[tuple[float, ...], ...]  # (n_phases, n_phases), from a window to the next
    temperature: float  # of the posteriors, before filtering
    threshold: float  # of the filtered probability of INFECTED, from which the alarm is raised
    clear_ratio: float  # of the threshold, below which the alarm is cleared
    version: int = 1

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ValueError(f"alarm rule: version must be 1, got {self.version!r}")
        n = len(self.phases)
        if len(self.initial) != n or [len(row) for row in self.transitions] != [n] * n:
            raise ValueError(f"alarm rule: initial and transitions must be for {n} phases")
        for row in (self.initial, *self.transitions):
            if not all(_is_number(share) and share >= 0 for share in row):
                raise ValueError(
                    "alarm rule: initial and transitions must be numbers of at least 0"
                )
            if abs(sum(row) - 1) > 1e-6:
                raise ValueError(f"alarm rule: shares must add up to 1, got {sum(row):g}")
        for name in ("temperature", "threshold", "clear_ratio"):
            value = getattr(self, name)
            if not _is_number(value):
                raise ValueError(f"alarm rule: {name} must be a number, got {value!r}")
        low, high = TEMPERATURES
        if not low <= self.temperature <= high:  # beyond, every phase has the likelihood 0
            raise ValueError(
                f"alarm rule: temperature must be {low} to {high}, got {self.temperature}"
            )
        if not 0 < self.clear_ratio <= 1:
            raise ValueError(
                f"alarm rule: clear_ratio must be above 0 and at most 1, got {self.clear_ratio}"
            )

    @property
    def clear_below(self) -> float:
        """Below this score the alarm is cleared."""
        return self.clear_ratio * self.threshold

    @cached_property
    def id(self) -> str:
        """sha256 of the rule."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_text(cls, text: str | bytes) -> AlarmRule:
        """A rule as written.

        Raises:
            ValueError: it has another form.
        """
        return cls.from_json(json.loads(text))

    @classmethod
    def from_json(cls, value: Any) -> AlarmRule:
        """A rule from its JSON object.

        Raises:
            ValueError: it has another form.
        """
        names = {each.name for each in fields(cls)}
        if not isinstance(value, dict) or set(value) != names:
            raise ValueError(f"alarm rule: must be an object of {', '.join(sorted(names))}")
        try:
            given = value | {
                "phases": tuple(value["phases"]),
                "initial": tuple(value["initial"]),
                "transitions": tuple(tuple(row) for row in value["transitions"]),
            }
        except TypeError as error:
            raise ValueError(f"alarm rule: {error}") from None
        return cls(**given)

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
        return filtered[:, attack_phase_mask(self.phases)].sum(axis=1)

    def alarms(
        self, score: NDArray[np.float64], first: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_]:
        """Windows ``(n_windows,)`` at which the alarm stands."""
        return apply_hysteresis(score, self.threshold, self.clear_below, first)


def attack_phase_mask(phases: Sequence[str]) -> NDArray[np.bool_]:
    """Which classes are an attack, ``(n_phases,)``."""
    return np.array([phase in INFECTED for phase in phases])


class RunningAlarmRule:
    """A rule on the posteriors of one machine while its windows arrive, equal to the last bit."""

    def __init__(self, rule: AlarmRule):
        self.rule = rule
        self._initial = np.array(rule.initial)
        self._transitions = np.array(rule.transitions)
        self.state: NDArray[np.float64] | None = None  # (n_phases,), filtered; None: no window yet
        self.alarm = False

    def push(self, proba: NDArray) -> tuple[NDArray[np.float64], float, bool]:
        """Take the next window's ``(n_phases,)``; returns what is filtered, score and alarm."""
        likelihood = likelihoods(proba[None], self.rule.temperature)
        prior = (
            self._initial if self.state is None else next_prior(self.state[None], self._transitions)
        )
        self.state = forward(likelihood, prior.ravel(), self._transitions)[0]
        score = float(self.rule.score(self.state[None])[0])
        if score >= self.rule.threshold:
            self.alarm = True
        elif score < self.rule.clear_below:
            self.alarm = False
        return self.state, score, self.alarm


def _is_number(value: Any) -> bool:
    """Whether it is a finite number, and no integer that a float cannot hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


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
        prior = next_prior(out[at], transitions)
        at = at + 1
        alive = at < ends
        at, ends, prior = at[alive], ends[alive], prior[alive]
    return out


def next_prior(state: NDArray[np.float64], transitions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The next windows' prior ``(n, n_phases)`` after filtered states ``(n, n_phases)``."""
    # not a matrix product: its last bits would depend on how many episodes there are
    return (state[:, :, None] * transitions).sum(axis=1)


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


def apply_hysteresis(
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
