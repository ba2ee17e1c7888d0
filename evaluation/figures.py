"""Figures: a value with its percentile interval, as documents hold it, and how they are computed.

The statistics themselves are in the other modules; the form is in ``documents``.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pydantic.dataclasses
from numpy.typing import NDArray
from pydantic import Field

from episodes.settings import SETTINGS, Int, NotNegative, NotNegativeInt, Share
from evaluation.documents import INTERVAL_LEVEL, Figure, FigureNote, Model, Subject

AnyModel = TypeVar("AnyModel", bound=Model)
COVERED = {4: 0.821, 6: 0.849, 10: 0.896, 20: 0.903, 40: 0.922, 80: 0.922, 160: 0.932}
"""Test episodes -> the share of 2,000 simulated test sets in which the interval of macro F1
contained the true value: what ``python -m benchmarks.coverage`` prints."""
LEAST_COVERED = 0.9
"""Below this share, figures say so."""


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=SETTINGS)
class ReportPolicy:
    """How figures are computed."""

    replicates: Annotated[Int, Field(ge=100)] = 10_000
    seed: NotNegativeInt = 0
    # the alarm budget: bounds the threshold on validation, and who may become champion
    false_alarms_per_hour: NotNegative = 2.0  # of clean time
    clean_time_alarmed: Share = 0.02


def figure(
    subject: Subject,
    metric: str,
    value: float,
    replicates: NDArray[np.float64] | None = None,
    **fields: Any,
) -> Figure:
    """A figure about a subject.

    Args:
        value: NaN or infinite becomes null; ``note`` then gives the reason.
        replicates: ``(B,)``, NaN where undefined; None: no interval. Empty: there are too few
            episodes to resample; the figure then has the note ``too_few_episodes``.
        fields: further fields; ``left_out`` defaults to the number of NaN among the replicates.
    """
    low, high = (math.nan, math.nan) if replicates is None else interval(replicates)
    computed = {
        "metric": metric,
        "value": finite_or_none(value),
        "low": finite_or_none(low),
        "high": finite_or_none(high),
        "left_out": 0 if replicates is None else int(np.isnan(replicates).sum()),
    }
    if replicates is not None and not len(replicates) and math.isfinite(value):
        fields["note"] = FigureNote(code="too_few_episodes")
    return Figure(**dict(subject) | computed | fields)


def coverage_note(episodes: int) -> FigureNote | None:
    """What to say of an interval of macro F1 over so many episodes; None: it is as good as told.

    Between two sizes that were simulated, the smaller one is what is known.
    """
    size = max((size for size in COVERED if size <= episodes), default=min(COVERED))
    if COVERED[size] >= LEAST_COVERED:
        return None
    numbers = {"episodes": size, "coverage": COVERED[size]}
    return FigureNote(code="covers_less", numbers=numbers)


def restricted(document: AnyModel, where: dict[str, str]) -> AnyModel:
    """A document in which every figure says that it is restricted to ``where`` as well."""

    def mark(value: Any) -> Any:
        if isinstance(value, list):
            return [mark(each) for each in value]
        if not isinstance(value, dict):
            return value
        marked = {name: mark(each) for name, each in value.items()}
        return marked | {"where": marked["where"] | where} if "metric" in marked else marked

    return type(document).model_validate(mark(document.model_dump()))


def finite_or_none(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval, at ``INTERVAL_LEVEL``, of the values that are defined; NaN: none is."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    # between a finite value and infinity nothing can be interpolated
    method: Literal["linear", "inverted_cdf"]
    method = "linear" if np.isfinite(defined).all() else "inverted_cdf"
    tail = (1 - INTERVAL_LEVEL) / 2
    low, high = np.quantile(defined, [tail, 1 - tail], method=method)
    return float(low), float(high)
