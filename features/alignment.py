"""Rows of four sources to one 10 Hz series on the wall clock.

docs/data-format.md has the rules: what is carried, interpolated, summed or missing. Everything is
computed in float64 and integer nanoseconds; the series is stored as float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from episodes.format import NS_PER_S, SOURCES
from episodes.jit import COMPILES, jit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from episodes.jsonl import Rows
    from features.registry import Layout

MAX_SPAN_S = 86_400


class AlignmentError(ValueError):
    """An episode cannot be aligned; the message says why."""


@dataclass(frozen=True)
class Grid:
    """``n_bins`` bins of ``bin_ns``; bin ``j`` covers ``[origin + j bin, origin + (j+1) bin)``."""

    origin_ns: int
    bin_ns: int
    n_bins: int

    @property
    def end_ns(self) -> int:
        return self.origin_ns + self.n_bins * self.bin_ns


MIN_RUN = 10
"""Rows that ``t_mono_ns`` must agree on before it is believed: a second of netflow."""


class CoarseClock:
    """Recovers the instants of rows whose wall time was written in whole seconds.

    ``d = t_wall - t_mono`` is a constant less a truncation in [0, 1) s. A run of rows ends where
    ``d`` changes by 1 s or more: the collector restarted, or a value is wrong. The maximum of ``d``
    over a run is closest to its constant. No row leaves the second that it states.
    """

    def __init__(self) -> None:
        self._last: int | None = None  # d of the last row
        self._lengths = np.zeros(0, dtype=np.int64)  # (n_runs,)
        self._offsets = np.zeros(0, dtype=np.int64)  # (n_runs,)

    def add(self, rows: Rows) -> NDArray[np.int64]:
        """The run of each row, -1 for one without ``t_mono_ns``; rows come in file order."""
        run = np.full(len(rows), -1, dtype=np.int64)
        d = (rows.t_wall_ns - rows.t_mono_ns)[rows.has_mono]
        if not len(d):
            return run
        change = np.diff(d, prepend=d[0] if self._last is None else self._last)
        breaks = (change >= NS_PER_S) | (change <= -NS_PER_S)
        breaks[0] |= self._last is None
        number = len(self._lengths) - 1 + np.cumsum(breaks)
        more = int(number[-1]) + 1 - len(self._lengths)
        lowest = np.iinfo(np.int64).min
        self._lengths = np.append(self._lengths, np.zeros(more, dtype=np.int64))
        self._offsets = np.append(self._offsets, np.full(more, lowest, dtype=np.int64))
        np.add.at(self._lengths, number, 1)
        np.maximum.at(self._offsets, number, d)
        self._last = int(d[-1])
        run[rows.has_mono] = number
        return run

    def instants(self, rows: Rows, run: NDArray[np.int64]) -> NDArray[np.int64]:
        """The Unix time in ns of rows, with their runs as ``add`` gave them."""
        wall = rows.t_wall_ns
        if not len(self._lengths):
            return wall
        later = self._offsets[run] - (wall - rows.t_mono_ns)
        fits = (run >= 0) & (self._lengths[run] >= MIN_RUN) & (later >= 0) & (later < NS_PER_S)
        return wall + np.where(fits, later, 0)


def instants(source: str, rows: Rows) -> NDArray[np.int64]:
    """The Unix time in ns of each row of a source, also if it was written in whole seconds.

    If any row has a finer wall time, all are returned unchanged.

    Args:
        rows: in file order.
    """
    if not SOURCES[source].clock_may_be_coarse or np.any(rows.t_wall_ns % NS_PER_S):
        return rows.t_wall_ns
    clock = CoarseClock()
    return clock.instants(rows, clock.add(rows))


def make_grid(label_t_wall_ns: NDArray[np.int64], sources: Mapping[str, Rows], bin_ns: int) -> Grid:
    """The bins from the earliest label to the last row of a polled source.

    A source with rows only when something happens sets the end only if there is no other.

    Raises:
        AlignmentError: there is no label, or the telemetry is over a day away (a wrong clock).
    """
    if not len(label_t_wall_ns):
        raise AlignmentError(
            "labels.jsonl: must have a label, got none; episode time starts at the earliest"
        )
    origin = int(label_t_wall_ns.min())
    polled = [r.t_wall_ns for n, r in sources.items() if SOURCES[n].expected_hz and len(r)]
    ends = polled or [instants(n, rows) for n, rows in sources.items() if len(rows)]
    span = max((int(t.max()) for t in ends), default=origin) - origin
    lead = origin - min((int(t.min()) for t in ends), default=origin)
    for distance, place in ((span, "end {} s after"), (lead, "begin {} s before")):
        if distance > MAX_SPAN_S * NS_PER_S:
            raise AlignmentError(
                f"telemetry must {place.format(f'at most {MAX_SPAN_S}')} the first label, "
                f"got {distance // NS_PER_S} s; check the host's clock"
            )
    return Grid(origin, bin_ns, max(0, span // bin_ns))


def align(sources: Mapping[str, Rows], grid: Grid, layout: Layout) -> NDArray[np.float32]:
    """The series ``(n_bins, n_channels)``, NaN = missing.

    Args:
        sources: rows with the values of ``layout.fields``, in any order of time.
    """
    series = np.full((len(layout.channels), grid.n_bins), np.nan)  # a channel is contiguous
    max_age_ns = layout.window.max_age_ms * 1_000_000
    for name, rows in sources.items():
        columns = layout.columns(name)
        if not len(rows) or not len(columns):
            continue
        times = instants(name, rows)
        values = np.ascontiguousarray(rows.values.T)
        if np.any(times[1:] < times[:-1]):
            order = np.argsort(times, kind="stable")
            times, values = times[order], np.ascontiguousarray(values[:, order])
        scratch: Any = np.empty_like(times), np.empty(len(times))
        if not COMPILES:
            times, scratch = times.tolist(), ([0] * len(times), [0.0] * len(times))
        for column, column_values in zip(columns, values, strict=True):
            out = series[column]
            if not COMPILES:  # plain Python reads lists faster than arrays
                column_values = column_values.tolist()
            kind = layout.channels[column].kind
            if kind == "level":
                _hold(times, column_values, grid.origin_ns, grid.bin_ns, max_age_ns, out)
            elif kind == "counter":
                _rate(times, column_values, *scratch, grid.origin_ns, grid.bin_ns, max_age_ns, out)
            else:
                _sum(times, column_values, grid.origin_ns, grid.bin_ns, out)
    with np.errstate(over="ignore"):
        stored = series.T.astype(np.float32, order="C")
    stored[np.isinf(stored)] = np.nan  # too large for float32
    return stored


@jit
def _hold(times, values, origin, bin_ns, max_age_ns, out):
    """Level: the last value before the bin's end while it is at most ``max_age_ns`` old."""
    i = 0
    value = np.nan
    seen_at = np.int64(0)
    for j in range(len(out)):
        end = origin + (j + 1) * bin_ns
        while i < len(times) and times[i] < end:
            if values[i] == values[i]:  # not NaN
                value = values[i]
                seen_at = times[i]
            i += 1
        if value == value and end - seen_at <= max_age_ns:
            out[j] = value


@jit
def _rate(times, values, at, held, origin, bin_ns, max_gap_ns, out):
    """Counter: the increase over the bin, interpolated between rows, per second.

    Increments are added stretch by stretch and large cumulative values are never subtracted, so a
    bin depends only on the rows around it, and a counter that did not move gives exactly 0.
    """
    n = 0
    for i in range(len(times)):
        if values[i] != values[i]:  # NaN
            continue
        if n > 0 and at[n - 1] == times[i]:
            n -= 1  # equal times: the last row wins
        at[n] = times[i]
        held[n] = values[i]
        n += 1
    if n < 2:
        return
    k = 0  # stretch k lies between rows k and k + 1
    for j in range(len(out)):
        begin = origin + j * bin_ns
        end = begin + bin_ns
        if begin < at[0]:
            continue
        if end > at[n - 1]:
            break
        while at[k + 1] <= begin:
            k += 1
        increase = 0.0
        stretch = k
        while stretch < n - 1 and at[stretch] < end:
            length = at[stretch + 1] - at[stretch]
            step = held[stretch + 1] - held[stretch]
            if length > max_gap_ns or step < 0.0:
                increase = np.nan
                break
            inside = min(end, at[stretch + 1]) - max(begin, at[stretch])
            increase += step * (inside / length)
            stretch += 1
        out[j] = increase / (bin_ns / 1e9)


@jit
def _sum(times, values, origin, bin_ns, out):
    """Bucket: the sum of the rows in the bin, 0 without rows, missing if a row has no value."""
    out[:] = 0.0
    for i in range(len(times)):
        j = (times[i] - origin) // bin_ns
        if 0 <= j < len(out):
            out[j] += values[i]
