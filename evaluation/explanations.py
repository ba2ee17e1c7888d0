"""What argues for a model's phases: importance by phase, and the most confident errors.

Arranges contributions that ``models`` computed; reads no file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.documents import ChannelTrace, Importance, PhaseImportance, SureError
from evaluation.scores import SplitPredictions

Method = Literal["exact", "occlusion"]
WINDOWS: dict[Method, int] = {"exact": 200, "occlusion": 50}
"""How many test windows importance is computed on, at most: occlusion scores each many times."""
ERRORS = 8  # windows that are shown
TRACES = 3  # channels that are shown of each
AROUND_S = 30.0  # before and after the window


@dataclass(frozen=True)
class Explanation:
    """What a report says beyond figures."""

    importance: Importance | None = None
    errors: list[SureError] = field(default_factory=list)


def spread(test: SplitPredictions, limit: int) -> NDArray[np.int64]:
    """Rows of at most ``limit`` windows: of each predicted phase equally many, evenly spread."""
    predicted = np.unique(test.predicted)
    each = max(1, limit // max(1, len(predicted)))
    chosen = []
    for phase in predicted:
        rows = np.flatnonzero(test.predicted == phase)
        at = np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)
        chosen.append(rows[at])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def importance(
    contributions: NDArray[np.float64],
    predicted: NDArray[np.int64],
    classes: Sequence[str],
    channels: Sequence[str],
    seen: NDArray[np.bool_],
    method: Method,
) -> Importance:
    """Mean absolute contribution by predicted phase.

    Args:
        contributions: ``(n_windows, n_channels)``, for the phase predicted, ``(n_windows,)``.
        seen: ``(n_channels,)``, which channels the model may see; the others are left out.
    """
    return Importance(
        method=method,
        windows=len(predicted),
        channels=[name for name, kept in zip(channels, seen, strict=True) if kept],
        phases=[
            PhaseImportance(
                name=name,
                windows=int((predicted == i).sum()),
                values=np.abs(contributions[predicted == i]).mean(axis=0)[seen].round(5).tolist(),
            )
            for i, name in enumerate(classes)
            if (predicted == i).any()
        ],
    )


def strongest_channels(contributions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of each window the channels that argue most for its phase, ``(n_windows, TRACES)``."""
    return np.argsort(-contributions, axis=1, kind="stable")[:, :TRACES]


def channel_trace(series: NDArray[np.float32], per_second: int) -> list[float | None]:
    """Means of each second, to four digits; None where every value is missing."""
    n = -(-len(series) // per_second) * per_second
    padded = np.full(n, np.nan)
    padded[: len(series)] = series
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a second without values
        means = np.nanmean(padded.reshape(-1, per_second), axis=1)
    return [None if np.isnan(mean) else float(f"{mean:.4g}") for mean in means]


def sure_error(
    row: dict[str, Any],
    from_s: float,
    channels: Sequence[tuple[str, float, list[float | None]]],
) -> SureError:
    """One window of ``scores.misclassified``.

    Args:
        from_s: where the traces begin.
        channels: name, contribution and trace.
    """
    return SureError(
        **{name: row[name] for name in SureError.model_fields if name in row},
        from_s=from_s,
        channels=[
            ChannelTrace(name=name, contribution=round(contribution, 4), values=values)
            for name, contribution, values in channels
        ],
    )
