"""Which rows of a source count: those within the episode's bounds, of a source that has values.

A row whose time cannot be right, or a source that says nothing, must not become a number. Verdicts
on what was left out are in ``validation``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from episodes.format import NS_PER_S
from episodes.jsonl import Rows, is_int64

MARGIN_S = 2
"""How far outside the episode's start and end a row, a label or an event may lie."""

MAX_SHARE_OUTSIDE = 0.01
"""With more of its rows outside, the clock of a source is wrong and none of them counts."""

Absence = Literal["no_rows", "outside", "no_values"]


@dataclass(frozen=True)
class Bounds:
    """The first and the last instant an episode may speak of, in Unix ns."""

    first_ns: int
    last_ns: int

    def outside(self, t_wall_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which instants lie outside."""
        return (t_wall_ns < self.first_ns) | (t_wall_ns > self.last_ns)


@dataclass(frozen=True)
class Usage:
    """What became of the rows of one source."""

    n_rows: int  # well-formed lines in the file
    n_repeated: int  # of these, equal to an earlier one
    n_outside: int  # of the others, outside the episode's bounds
    absence: Absence | None  # why none of them counts; None: those within the bounds count
    present: NDArray[np.bool_]  # (n_rows that count,) has a value of at least half of the fields
    silent: NDArray[np.bool_]  # (n_fields,) has no value in any row that counts


def episode_bounds(meta: dict[str, Any]) -> Bounds | None:
    """The bounds that ``meta.json`` states; None if it states no start or no end."""
    times: list[Any] = [meta.get("started_at_wall_ns"), meta.get("ended_at_wall_ns")]
    if not all(map(is_int64, times)):
        return None
    margin = MARGIN_S * NS_PER_S
    return Bounds(times[0] - margin, times[1] + margin)


def usable_rows(rows: Rows, bounds: Bounds | None) -> tuple[Rows, Usage]:
    """The rows of a source that count, none of them if it counts as absent.

    Args:
        rows: as parsed, in file order.
        bounds: None: any time is taken.
    """
    outside = bounds.outside(rows.t_wall_ns) if bounds else np.zeros(len(rows), dtype=np.bool_)
    n_outside = int(np.count_nonzero(outside))
    kept = rows.take(~outside) if n_outside else rows
    n_kept, n_fields = kept.values.shape
    missing = np.isnan(kept.values)
    present, silent = np.ones(n_kept, dtype=np.bool_), np.zeros(n_fields, dtype=np.bool_)
    if np.any(missing):  # rare, and the sums are slow
        present = 2 * np.count_nonzero(missing, axis=1) <= n_fields
        silent = np.all(missing, axis=0)
    absence: Absence | None = None
    if not len(rows):
        absence = "no_rows"
    elif n_outside > MAX_SHARE_OUTSIDE * len(rows):
        absence = "outside"
    elif n_fields and np.all(silent):
        absence = "no_values"
    if absence:
        kept, present = kept.take(slice(0)), present[:0]
    n_rows = len(rows) + rows.n_repeated
    return kept, Usage(n_rows, rows.n_repeated, n_outside, absence, present, silent)
