"""How far a window is from what was trained on, with a promise: conformal anomaly detection.

The score of a window is its distance to the nearest training windows, averaged with those of the
two windows before it. By itself it says nothing, so it is compared with the scores of whole
episodes that were not trained on, those of validation: Vovk, Gammerman and Shafer, "Algorithmic
Learning in a Random World", Springer 2005 (inductive conformal prediction); Laxhammar and Falkman,
"Online Learning and Conformal Anomaly Detection in Trajectories", IEEE Transactions on Pattern
Analysis and Machine Intelligence 36, 2014.

**The promise.** An episode's score is the highest of its windows. If an episode is exchangeable
with the ``n`` calibration episodes, its p value ``(1 + k) / (n + 1)``, where ``k`` of them score at
least as high, is at most ``alpha`` with probability at most ``alpha``; without ties exactly
``floor(alpha (n + 1)) / (n + 1)``. Nothing is assumed of the distribution, of the windows within an
episode, or of the score. The probability is over the calibration episodes too.

Online, the highest score so far can only grow and the p value only fall, to that of the whole
episode. So the promise holds at every window at once: in an episode like those of calibration,
"unlike" is said at any time with probability at most ``alpha``. It does not hold for a recording
that goes on for longer than they did, which has more windows to be the highest.

NumPy only, because a device runs it, with at most ``MAX_POINTS`` windows in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.registry import Mode
from models.base import Inputs, blocks
from models.scaling import check_scaling, fit_scaling, leading_axes, scale

ALPHA = 0.1
MAX_POINTS = 2000  # training windows kept
N_AXES = 32
NEIGHBOURS = 5
LIMIT = 3.0  # standard deviations at which a scaled input saturates: one must not decide all
SMOOTHED = 3  # windows that a score is the mean of: the last of them and those before
_BLOCK = 512
_HEAD = "likeness"


@dataclass(frozen=True, eq=False)
class TrainingSpace:
    """Training windows along their principal axes, and the distance to them."""

    scaling: dict[str, Any]
    axes: NDArray[np.float32]  # (n_inputs, n_axes)
    points: NDArray[np.float32]  # (n_points, n_axes)

    def distances(self, X: Inputs) -> NDArray[np.float64]:
        """Mean distance ``(n_windows,)`` to the nearest training windows.

        What lies across the axes counts in full: training has next to nothing there. A window
        without any value is at distance 0: it says nothing.
        """
        points = self.points.astype(np.float64)
        k = min(NEIGHBOURS, len(points))
        found = [np.empty(0)]
        for block in blocks(X, _BLOCK):
            rows = scale(block, self.scaling).astype(np.float64)
            along = rows @ self.axes
            across = np.maximum((rows**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
            squared = (
                (along**2).sum(axis=1)[:, None] + (points**2).sum(axis=1) - 2 * along @ points.T
            )
            nearest = np.partition(np.maximum(squared, 0.0), k - 1, axis=1)[:, :k]
            empty = np.isnan(block).all(axis=1)
            found.append(np.where(empty, 0.0, np.sqrt(nearest + across[:, None]).mean(axis=1)))
        return np.concatenate(found)


def fit_training_space(X: Inputs, seed: int) -> TrainingSpace:
    """The space of training windows; of more than ``MAX_POINTS``, as many are drawn."""
    scaling = fit_scaling(X, limit=LIMIT)
    scaled = (scale(block, scaling).astype(np.float64) for block in blocks(X, _BLOCK))
    axes = leading_axes(scaled, N_AXES).astype(np.float32)
    drawn = np.random.default_rng([seed, len(X)]).permutation(len(X))[:MAX_POINTS]
    kept = np.sort(drawn)
    return TrainingSpace(scaling, axes, scale(np.asarray(X[kept]), scaling) @ axes)


def p_values(scores: NDArray[np.float64], calibration: NDArray[np.float64]) -> NDArray[np.float64]:
    """Conformal p values of scores ``(n,)``: ``(1 + k) / (n_calibration + 1)``; ties count."""
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + at_least) / (len(ordered) + 1)


@dataclass(frozen=True, eq=False)
class Likeness:
    """A space, and how far from it the calibration episodes are."""

    mode: Mode
    contract_hash: str  # of the summary inputs
    space: TrainingSpace
    calibration: NDArray[np.float64]  # (n_episodes,), ascending

    @cached_property
    def id(self) -> str:
        """sha256 of it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def least_p(self) -> float:
        """The smallest p value there is; above ``ALPHA``, nothing is ever called unlike."""
        return 1 / (len(self.calibration) + 1)

    def scores(self, X: Inputs, first: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """How far each window ``(n_windows,)`` is from training.

        Args:
            X: consecutive windows.
            first: ``(n_windows,)``, where an episode begins; by default the first window alone.
        """
        return recent_mean(self.space.distances(X), first)

    def p_values(
        self, scores: NDArray[np.float64], first: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """At each window ``(n_windows,)`` the p value of its episode so far; it never rises."""
        return p_values(highest_so_far(scores, first), self.calibration)

    def head(self) -> dict[str, Any]:
        """What it is, but for its arrays."""
        scaling = {name: self.space.scaling[name] for name in ("transform", "block_bins", "limit")}
        return {
            "mode": self.mode,
            "contract_hash": self.contract_hash,
            "scaling": scaling,
            "constants": _constants(),
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its arrays, by name."""
        arrays = {
            "axes": self.space.axes,
            "points": self.space.points,
            "calibration": self.calibration,
            "mean": np.array(self.space.scaling["mean"]),
            "std": np.array(self.space.scaling["std"]),
        }
        return {name: np.ascontiguousarray(values) for name, values in arrays.items()}

    @classmethod
    def from_arrays(cls, head: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Likeness:
        """A likeness from what ``head`` and ``arrays`` gave.

        Raises:
            ValueError: it has another form, or its scores were computed in another way.
        """
        try:
            if head["constants"] != _constants():
                raise ValueError(f"made with {head['constants']}, now {_constants()}")
            limits = {name: arrays[name].tolist() for name in ("mean", "std")}
            axes, points, calibration = (arrays[n] for n in ("axes", "points", "calibration"))
            scaling = check_scaling(head["scaling"] | limits, len(axes))
            if axes.ndim != 2 or points.shape[1:] != axes.shape[1:] or points.ndim != 2:
                raise ValueError("axes and points do not fit together")
            if calibration.ndim != 1 or not len(calibration):
                raise ValueError("must have calibration episodes")
            if not 1 <= len(points) <= MAX_POINTS:
                raise ValueError(f"must have 1 to {MAX_POINTS} points, got {len(points)}")
            for values in (axes, points, calibration):
                if values.dtype.kind != "f" or not np.all(np.isfinite(values)):
                    raise ValueError("arrays must be finite")
            return cls(
                head["mode"],
                head["contract_hash"],
                TrainingSpace(scaling, axes, points),
                calibration,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a likeness: {error}") from error

    def to_bytes(self) -> bytes:
        from safetensors.numpy import save  # here: a device has NumPy alone

        return save(self.arrays(), metadata={_HEAD: json.dumps(self.head(), sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Likeness:
        """A likeness as written.

        Raises:
            ValueError: see ``from_arrays``.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(content)
            length = int.from_bytes(content[:8], "little")
            head = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_HEAD])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"not a likeness: {error}") from error
        return cls.from_arrays(head, arrays)


def _constants() -> dict[str, int]:
    """What scores depend on beside the space; calibration holds for these alone."""
    return {"neighbours": NEIGHBOURS, "smoothed": SMOOTHED}


class RunningLikeness:
    """A likeness on one machine while its windows arrive, equal to ``Likeness.p_values``."""

    def __init__(self, likeness: Likeness):
        self.likeness = likeness
        self.recent: list[float] = []  # distances of the last windows
        self.highest = -np.inf  # score so far

    def push(self, row: NDArray[np.float32]) -> float:
        """Take the next window's inputs ``(n_inputs,)``; returns its p value so far."""
        distance = float(self.likeness.space.distances(row[None])[0])
        self.recent = [*self.recent, distance][-SMOOTHED:]
        self.highest = max(self.highest, float(np.array(self.recent).mean()))
        return float(p_values(np.array([self.highest]), self.likeness.calibration)[0])


def calibrate(
    space: TrainingSpace, X: Inputs, first: NDArray[np.bool_], mode: Mode, contract_hash: str
) -> Likeness:
    """A likeness whose promise rests on the episodes of ``X``, none of which the space knows.

    Args:
        X: windows of whole episodes, each in order.
        first: ``(n_windows,)``, where an episode begins.
    """
    scores = recent_mean(space.distances(X), first)
    return Likeness(mode, contract_hash, space, np.sort(highest_per_episode(scores, first)))


def highest_per_episode(
    scores: NDArray[np.float64], first: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The highest score of each episode ``(n_episodes,)``, in their order."""
    return np.maximum.reduceat(scores, np.flatnonzero(first))


def highest_so_far(
    scores: NDArray[np.float64], first: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """The highest score ``(n_windows,)`` of the episode up to each window."""
    out = np.empty(len(scores))
    for start, end in _spans(len(scores), first):
        out[start:end] = np.maximum.accumulate(scores[start:end])
    return out


def recent_mean(
    distances: NDArray[np.float64], first: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """Mean ``(n_windows,)`` over each window and the ``SMOOTHED - 1`` before it in its episode."""
    out = np.empty(len(distances))
    for start, end in _spans(len(distances), first):
        for at in range(start, end):
            out[at] = distances[max(start, at + 1 - SMOOTHED) : at + 1].mean()
    return out


def _spans(n: int, first: NDArray[np.bool_] | None) -> Iterator[tuple[int, int]]:
    """Of each episode the first window, and the one after its last."""
    begins = np.zeros(n, dtype=bool) if first is None else first.astype(bool)
    begins[:1] = True
    starts = np.flatnonzero(begins)
    yield from zip(starts.tolist(), [*starts[1:].tolist(), n][: len(starts)], strict=True)
