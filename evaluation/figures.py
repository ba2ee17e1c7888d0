"""What a figure is: a value with its interval, and everything needed to quote it by itself.

Only the form that figures and documents have in JSON; the statistics are in the modules beside.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pydantic.dataclasses
from pydantic import Field

from episodes.settings import SETTINGS, Int, NotNegative

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

REPORT_SCHEMA = "phasewatch.eval_report/3"
COMPARISONS_SCHEMA = "phasewatch.comparisons/2"
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
LEVEL = 0.95


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=SETTINGS)
class ReportPolicy:
    """How figures are computed."""

    replicates: Annotated[Int, Field(ge=100)] = 10_000
    seed: Int = 0
    false_alarms_per_hour: NotNegative = 6.0  # of clean time, on validation: bounds the threshold


@dataclass(frozen=True, slots=True)
class Subject:
    """Of what a figure speaks: a predictor, and the data it was evaluated on."""

    model: str
    mode: str
    recipe: str
    split: str
    dataset_version: str
    checkpoint_id: str

    def on(self, split: str) -> Subject:
        """The same predictor on another split."""
        return replace(self, split=split)

    @property
    def who(self) -> dict[str, str]:
        """The predictor alone."""
        return {"model": self.model, "mode": self.mode, "checkpoint_id": self.checkpoint_id}

    def figure(
        self,
        metric: str,
        value: float,
        replicates: NDArray[np.float64] | None = None,
        *,
        where: Mapping[str, str] | None = None,
        left_out: int | None = None,
        note: str | None = None,
    ) -> dict[str, Any]:
        """A figure as it stands in a document.

        Args:
            value: NaN or infinite becomes null; ``note`` then says why.
            replicates: ``(B,)``, NaN where undefined; None: there is no interval.
            where: what it is restricted to, such as ``{"class": "clean"}``; None: nothing.
            left_out: replicates that left something out; None: those that are NaN.
        """
        low, high = (math.nan, math.nan) if replicates is None else interval(replicates)
        if left_out is None:
            left_out = 0 if replicates is None else int(np.isnan(replicates).sum())
        return {
            "metric": metric,
            "value": finite(value),
            "low": finite(low),
            "high": finite(high),
            "level": LEVEL,
            "left_out": left_out,
            "where": dict(where or {}),
            "note": note,
            **asdict(self),
        }


def finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval at ``LEVEL`` of the values that are defined; NaN where none is."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    # between a finite value and infinity nothing can be interpolated
    method: Literal["linear", "inverted_cdf"]
    method = "linear" if np.isfinite(defined).all() else "inverted_cdf"
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method=method)
    return float(low), float(high)


def document_text(document: Mapping[str, Any]) -> str:
    """A document as it is written: no NaN, one line end."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
