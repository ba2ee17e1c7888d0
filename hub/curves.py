"""How signals run through attacks: on an axis that is aligned by phase, and over many of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from episodes.format import INFECTED
from features.relative import signed_log
from hub.events import CURVE_POINTS

AXIS = (("clean", 10), ("armed", 5), ("infecting", 10), ("infected_running", 40), ("clean", 15))
"""The spans of an attack, and how many points of the curve each gets."""
assert sum(points for _, points in AXIS) == CURVE_POINTS
RESOURCES = {
    "cpu": "guest.cpu_user_jiffies",
    "network": "guest.net_tx_bytes",
    "disk": "guest.disk_write_sectors",
    "processes": "guest.forks",
    "connections": "guest.tcp_active_opens",
}
"""What an attack may use most, and the channel that shows it."""
STANDS_OUT = float(np.log(1.5))
"""By how much more than the others the use of a resource must grow to give a profile its shape."""


@dataclass(frozen=True)
class AttackCurve:
    """The first attack of a recording on the common axis, by resource."""

    curve: NDArray[np.float64]  # (CURVE_POINTS, n_resources), NaN: the recording lacks it
    growth: NDArray[np.float64]  # (n_resources,) of the logarithm, from clean to infected_running


def attack_spans(bins: list[str]) -> list[tuple[int, int] | None] | None:
    """Where the spans of ``AXIS`` are in the first attack of a recording; None: no attack.

    Each is one run without a break: the clean and the armed run right before the attack, its
    ``infecting`` and first ``infected_running`` run, and the clean run that ends it, be it after
    dormancy. None for what the attack lacks.

    Args:
        bins: the phase of each bin.
    """
    edges = [0, *(i for i in range(1, len(bins)) if bins[i] != bins[i - 1]), len(bins)]
    runs = [(bins[a], (a, b)) for a, b in pairwise(edges) if a < b]

    def at(i: int, phase: str) -> tuple[int, int] | None:
        return runs[i][1] if 0 <= i < len(runs) and runs[i][0] == phase else None

    onset = next((i for i, (phase, _) in enumerate(runs) if phase in INFECTED), None)
    if onset is None:
        return None
    infecting, armed = at(onset, "infecting"), at(onset - 1, "armed")
    ongoing = (*INFECTED, "dormant")
    over = next((i for i in range(onset, len(runs)) if runs[i][0] not in ongoing), len(runs))
    return [
        at(onset - 1 - (armed is not None), "clean"),
        armed,
        infecting,
        at(onset + (infecting is not None), "infected_running"),
        at(over, "clean"),
    ]


def attack_curve(series: NDArray[np.float64], spans: list[tuple[int, int] | None]) -> AttackCurve:
    """An attack on the common axis.

    Args:
        series: ``(n_bins, n_resources)``.
    """
    parts = [
        np.full((points, series.shape[1]), np.nan)
        if span is None
        else resampled(series[slice(*span)], points)
        for span, (_, points) in zip(spans, AXIS, strict=True)
    ]
    before, running = (
        np.full(series.shape[1], np.nan) if span is None else _mean(series[slice(*span)])
        for span in (spans[0], spans[3])
    )
    return AttackCurve(np.concatenate(parts), signed_log(running) - signed_log(before))


def resampled(values: NDArray[np.float64], points: int) -> NDArray[np.float64]:
    """``points`` means over equal parts of a span ``(n_bins, n)``; a short one repeats bins."""
    n = len(values)
    starts = [i * n // points for i in range(points)]
    ends = [max(a + 1, -(-(i + 1) * n // points)) for i, a in enumerate(starts)]
    return np.stack([_mean(values[a:b]) for a, b in zip(starts, ends, strict=True)])


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each column over the values present; NaN where none is."""
    count = np.count_nonzero(~np.isnan(values), axis=0)
    return np.divide(
        np.nansum(values, axis=0), count, out=np.full(values.shape[1], np.nan), where=count > 0
    )


def quartiles(curves: NDArray[np.float64]) -> tuple[list[float | None], ...]:
    """p25, median and p75 ``(n_points,)`` of curves ``(n_episodes, n_points)``; None: no value."""
    out: tuple[list[float | None], ...] = ([], [], [])
    for column in curves.T:
        present = column[~np.isnan(column)]
        found = np.quantile(present, [0.25, 0.5, 0.75]).tolist() if len(present) else [None] * 3
        for values, value in zip(out, found, strict=True):
            values.append(None if value is None else float(f"{value:.6g}"))
    return out


def attack_shape(growth: NDArray[np.float64]) -> str:
    """The resource whose use grows most during the attacks of a profile.

    ``mixed`` if it does not stand out from the next, ``quiet`` if none grows.

    Args:
        growth: ``(n_attacks, n_resources)``.
    """
    medians = {
        name: float(np.median(present))
        for name, column in zip(RESOURCES, growth.T, strict=True)
        if len(present := column[~np.isnan(column)])
    }
    most = max(medians, key=medians.__getitem__, default=None)
    if most is None or medians[most] < STANDS_OUT:
        return "quiet"
    others = [value for name, value in medians.items() if name != most]
    return most if medians[most] - max([0.0, *others]) >= STANDS_OUT else "mixed"
