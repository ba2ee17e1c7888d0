"""Geometry and colours of the page's charts: documents in, SVG paths and places out. No words.

A chart is drawn into a box of 1000 by 1000 and stretched to its place; lines keep their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from evaluation.documents import (
    Detection,
    LearningCurve,
    OperatingPoint,
    ReliabilityBin,
    SureError,
    Timeline,
)
from models.alarm import apply_hysteresis

PHASE_COLOURS = {  # on light paper, on dark paper
    "clean": ("#cdd5da", "#414b53"),
    "armed": ("#b98a00", "#fcd646"),
    "infecting": ("#a83f08", "#f0803c"),
    "infected_running": ("#8c1268", "#e0408f"),
    "dormant": ("#2f63d6", "#5b8cff"),
}
"""Distinct with every kind of colour vision; ``clean`` is near the paper and has an outline.

The live page has the same in ``hub/page/style.css``.
"""
SPARE_COLOURS = ("#5f7f5f", "#8fb38f")  # of a phase that is not listed

SIDE = 1000
MAX_DRAWN_POINTS = 60  # of a learning curve: more than its width can show
LOW_LOSS = 1e-9


def palette(phases: Iterable[str]) -> list[tuple[str, str, str]]:
    """Each phase with its colour on light and on dark paper."""
    return [(phase, *PHASE_COLOURS.get(phase, SPARE_COLOURS)) for phase in phases]


def place(share: float) -> int:
    """A share from 0 to 1 as a coordinate; what lies outside is put on the edge."""
    return round(SIDE * min(1.0, max(0.0, share)))


def path(points: Iterable[tuple[float, float | None]]) -> str:
    """A line through shares ``(x, y)``, ``y`` upwards; it is broken where ``y`` is None."""
    drawn = []
    for known, run in groupby(points, key=lambda point: point[1] is not None):
        if known:
            places = [f"{place(x)} {SIDE - place(y)}" for x, y in run if y is not None]
            # a lone point is drawn by its round cap
            drawn.append("M" + "L".join(places if len(places) > 1 else places * 2))
    return "".join(drawn)


def learning_curve(curve: LearningCurve) -> dict[str, Any] | None:
    """Losses and validation macro F1 by step; None where nothing was learned step by step."""
    rows = curve.rows
    if len(rows) < 2:
        return None
    best = next((i for i, row in enumerate(rows) if row[0] == curve.best_step), None)
    stride = max(1, math.ceil(len(rows) / MAX_DRAWN_POINTS))
    shown = [row for i, row in enumerate(rows) if i % stride == 0 or i in (best, len(rows) - 1)]
    first, last = rows[0][0], rows[-1][0]
    losses = [loss for _, train, val, _ in shown for loss in (train, val) if loss is not None]
    top = max([*losses, LOW_LOSS])

    def line(values: Iterable[float | None], scale: float = 1.0) -> str:
        return path(
            ((row[0] - first) / (last - first), None if value is None else value / scale)
            for row, value in zip(shown, values, strict=True)
        )

    return {
        "first": first,
        "last": last,
        "top": top,
        "train": line((train for _, train, _, _ in shown), top),
        "val": line((val for _, _, val, _ in shown), top),
        "score": line(score for _, _, _, score in shown),
        "best": None if best is None else place((rows[best][0] - first) / (last - first)),
        "best_step": curve.best_step,
        "best_row": None if best is None else dict(zip(curve.columns, rows[best], strict=True)),
    }


def reliability(bins: Sequence[ReliabilityBin]) -> dict[str, Any]:
    """Confidence against accuracy: the line, and its points."""
    points = [(each.confidence, each.accuracy) for each in bins]
    return {"line": path(points), "points": [(place(x), SIDE - place(y)) for x, y in points]}


def operating(detection: Detection) -> dict[str, Any] | None:
    """Attacks found and delay against false alarms per hour; None without clean time or attack.

    Lines end where false alarms are most frequent: beyond, alarms merge and their number falls.
    """
    points, random = (
        _rising(each)
        for each in (detection.operating_curve.points, detection.operating_curve.random)
    )
    top = max([p.false_alarms_per_hour.value or 0.0 for p in points], default=0.0)
    if not points or not top or points[-1].detected_share.value is None:
        return None
    random = [p for p in random if (p.false_alarms_per_hour.value or 0.0) <= top]
    delays = [p.median_delay_s.value for p in (*points, *random)]
    slowest = max([delay for delay in delays if delay is not None] or [LOW_LOSS])

    def line(shown: Sequence[OperatingPoint], name: str, end: str, scale: float = 1.0) -> str:
        ends = [getattr(getattr(point, name), end) for point in shown]
        return path(
            ((point.false_alarms_per_hour.value or 0.0) / top, None if y is None else y / scale)
            for point, y in zip(shown, ends, strict=True)
        )

    at = detection.false_alarms_per_hour.value
    return {
        "top": top,
        "slowest": slowest,
        "found": [line(points, "detected_share", end) for end in ("value", "low", "high")],
        "random_found": line(random, "detected_share", "value"),
        "delay": [line(points, "median_delay_s", end, slowest) for end in ("value", "low", "high")],
        "random_delay": line(random, "median_delay_s", "value", slowest),
        "chosen": None if at is None or at > top else place(at / top),
    }


def _rising(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """From the highest threshold down to where false alarms are most frequent."""
    rates = [point.false_alarms_per_hour.value or 0.0 for point in points]
    return list(points[: 1 + max(range(len(rates)), key=lambda i: (rates[i], -i))]) if rates else []


def timeline(
    shown: Timeline,
    phases: Sequence[str],
    alarm_phases: Sequence[str],
    stride_s: float,
    clear_below: float,
) -> dict[str, Any] | None:
    """Strips of true and predicted phases and the alarm score; None without windows.

    A window's phase is that at its centre, so its cell is drawn there, one stride wide. Its alarm
    is known at its end, so its score is drawn there. An alarm stands until its score is below
    ``clear_below``.
    """
    starts, length = shown.start_s, shown.length_s
    if not starts:
        return None
    end = starts[-1] + length
    proba = [shown.proba[phase] for phase in alarm_phases if phase in shown.proba]
    score = [sum(each) for each in zip(*proba, strict=True)] or [0.0] * len(starts)
    cells = [(at + length / 2 - stride_s / 2, at + length / 2 + stride_s / 2) for at in starts]
    ends = [at + length for at in starts]
    alarmed = apply_hysteresis(np.array(score), shown.threshold, clear_below)
    spans = [(at, at + stride_s) for at, on in zip(ends, alarmed, strict=True) if on]
    onset = shown.onset_s
    return {
        "end": end,
        "strips": [
            (name, _strip(getattr(shown, name), cells, phases, end))
            for name in ("actual", "predicted")
        ],
        "score": path((at / end, value) for at, value in zip(ends, score, strict=True)),
        "alarmed": _boxes(spans, end),
        "threshold": SIDE - place(shown.threshold),
        "onset": None if onset is None else place(onset / end),
    }


def sparks(error: SureError, length_s: float) -> list[dict[str, Any]]:
    """Each channel around a window as a line between its least and largest value there."""
    drawn = []
    for channel in error.channels:
        values = [value for value in channel.values if value is not None]
        low, high = min(values, default=0.0), max(values, default=0.0)
        span, seconds = (high - low) or 1.0, max(len(channel.values), 1)
        begins = error.start_s - error.from_s
        drawn.append(
            {
                "name": channel.name,
                "contribution": channel.contribution,
                "low": low,
                "high": high,
                "line": path(
                    ((i + 0.5) / seconds, None if value is None else (value - low) / span)
                    for i, value in enumerate(channel.values)
                ),
                "window": _boxes([(begins, begins + length_s)], seconds),
            }
        )
    return drawn


def _strip(
    names: Sequence[str], cells: Sequence[tuple[float, float]], phases: Sequence[str], end: float
) -> list[tuple[int, str]]:
    """Boxes of each phase that occurs, by its place among ``phases``."""
    return [
        (i, _boxes([cell for cell, n in zip(cells, names, strict=True) if n == phase], end))
        for i, phase in enumerate(phases)
        if phase in names
    ]


def _boxes(spans: Iterable[tuple[float, float]], end: float) -> str:
    """Boxes of full height; spans that touch are one."""
    merged: list[list[int]] = []
    for low, high in ((place(a / end), place(b / end)) for a, b in spans):
        if merged and low <= merged[-1][1]:
            merged[-1][1] = high
        else:
            merged.append([low, high])
    return "".join(f"M{low} 0H{high}V{SIDE}H{low}z" for low, high in merged)
