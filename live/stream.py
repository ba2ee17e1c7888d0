"""Windows of one machine while its rows arrive, in bounded memory, whatever arrives.

Rows are aligned by the batch code on a short buffer, so a live window is bit for bit the batch
window of the same rows. ``docs/device.md`` says what becomes of rows that are late, repeated, out
of order or from another time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from episodes.format import NS_PER_S, SOURCES
from episodes.jsonl import Rows, parse_rows
from features.alignment import CoarseClock, Grid, align
from features.registry import Layout
from features.relative import RunningMedian
from features.summary import summarise
from features.windows import source_coverage
from live.silence import QUIET_S

LEAP_S = 600
"""A row this far from the others is from another time. If the next rows agree with it, the machine
slept or its clock was set: windows start anew and the past is forgotten."""
STEP_S = 1
"""Of a clock that is set: by how much ``t_wall_ns - t_mono_ns`` changes from row to row."""
AGREE = 10  # rows in sequence that must agree before windows start anew: one second
MAX_ROWS = 20_000  # kept per source: over half an hour at 10 Hz; of more, the oldest are dropped
MAX_LINES = 4096  # per source, in which a repeated line is noticed
_DIGEST = 16  # bytes of what is kept of a line

Note = Literal["late", "stray", "repeated", "malformed", "dropped"]
"""What may become of a row: too late for any window; alone in another time; equal to an earlier
line; not a row; dropped for lack of memory."""


@dataclass(frozen=True)
class LiveWindow:
    """A window that no later row can change."""

    number: int  # counts from the start of the stream
    start_ns: int  # Unix time of its first bin
    start_s: float  # since the stream's origin
    last_ns: int | None  # Unix time of the last row before its end; None: there is none
    series: NDArray[np.float32]  # (n_timepoints, n_channels)
    features: NDArray[np.float32]  # (n_features,)
    baseline: NDArray[np.float32]  # (n_features,), of the machine's past, see features.relative
    level: NDArray[np.float32]  # (n_channels,)
    coverage: dict[str, float]  # per source the share of values present
    restarted: str  # why windows start anew with this one; empty: they do not


class LiveWindows:
    """Turns lines of telemetry into windows.

    A window is finished when a polled source is ``max_age_ms`` past its end, because no later row
    can then change it. Until its first row a source is missing; batch code, which has the whole
    episode, may give 0. It also knows the episode's bounds.

    Args:
        origin_ns: Unix time at which the grid starts; None: the first row's.
    """

    def __init__(self, layout: Layout, origin_ns: int | None = None):
        self.layout = layout
        self._origin = origin_ns
        self._next_bin = 0
        self._number = 0
        self._newest: dict[str, int] = {}  # per source the latest time of a row
        self._rows: dict[str, Rows] = {}
        # per source the digests of its last lines, which are themselves of any length
        self._seen: dict[str, OrderedDict[bytes, None]] = {name: OrderedDict() for name in SOURCES}
        self._strangers: dict[str, list[tuple[int, bytes]]] = {}
        self._offset: dict[str, int] = {}  # per polled source its last t_wall_ns - t_mono_ns
        self._baseline = RunningMedian(layout.window.horizon_windows)
        self._restarted = ""
        self.counts: dict[Note, int] = dict.fromkeys(
            ("late", "stray", "repeated", "malformed", "dropped"), 0
        )
        self._reset_clocks()

    @property
    def number(self) -> int:
        """Number of the next window."""
        return self._number

    @property
    def newest_s(self) -> float | None:
        """Unix time of the newest row; None: none has come."""
        return max(self._newest.values()) / NS_PER_S if self._newest else None

    @property
    def past(self) -> int:
        """How many windows of the machine's past are known, the last one included."""
        return len(self._baseline.rows)

    # --- rows in

    def push(self, source: str, lines: bytes) -> Iterator[LiveWindow]:
        """Take lines of one source, in any order; yields the windows they finish."""
        fresh = self._without_repeated(source, lines)
        if not fresh:
            return
        spec = SOURCES[source]
        rows = parse_rows(fresh, self.layout.fields[source], spec.tag)
        self.counts["malformed"] += rows.n_malformed
        if not len(rows):
            return
        if self._origin is None:
            self._origin = int(rows.t_wall_ns[0])
        strange = self._far(rows.t_wall_ns) | self._set_back(source, rows)
        if np.any(strange):
            yield from self._set_aside(source, fresh, rows, strange)
            return
        if rows.has_mono[-1]:
            self._offset[source] = int(rows.t_wall_ns[-1] - rows.t_mono_ns[-1])
        self.counts["stray"] += len(self._strangers.pop(source, ()))
        self._keep(source, rows)
        yield from self._finished(self._settled())

    def close(self) -> Iterator[LiveWindow]:
        """The windows that are whole if no further row comes."""
        ends = {name: int(rows.t_wall_ns.max()) for name, rows in self._on_clock().items()}
        polled = [t for name, t in ends.items() if SOURCES[name].expected_hz]
        if ends:
            yield from self._finished(max(polled or ends.values()))

    def _without_repeated(self, source: str, lines: bytes) -> bytes:
        """Lines that are not equal to one of the last; a repeated bucket would count twice."""
        seen, fresh = self._seen[source], []
        for line in lines.split(b"\n"):
            if not line.strip():
                continue
            digest = line_digest(line)
            if digest in seen:
                self.counts["repeated"] += 1
                continue
            seen[digest] = None
            fresh.append(line)
        while len(seen) > MAX_LINES:
            seen.popitem(last=False)
        return b"\n".join(fresh)

    def _far(self, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows are from another time than those before."""
        assert self._origin is not None
        leap = LEAP_S * NS_PER_S
        newest = max(self._newest.values(), default=self._origin)
        with_these = np.maximum.accumulate(np.where(abs(times - newest) > leap, newest, times))
        earlier = np.concatenate([[newest], np.maximum(with_these[:-1], newest)])
        return (times < earlier - leap) | (times > earlier + leap)

    def _set_back(self, source: str, rows: Rows) -> NDArray[np.bool_]:
        """Which rows of a polled source come after its clock was set back."""
        if not SOURCES[source].expected_hz or source not in self._offset:
            return np.zeros(len(rows), dtype=np.bool_)
        step = STEP_S * NS_PER_S
        change = rows.t_wall_ns - rows.t_mono_ns - self._offset[source]
        # a collector that was restarted has a new t_mono_ns, but its wall clock does not fall
        fell = rows.t_wall_ns < self._newest.get(source, 0) - step
        return rows.has_mono & (change < -step) & fell

    def _set_aside(
        self, source: str, lines: bytes, rows: Rows, strange: NDArray[np.bool_]
    ) -> Iterator[LiveWindow]:
        """Hold rows from another time until enough of them agree; take the others."""
        each = lines.split(b"\n")
        if len(each) != len(rows):  # a malformed line among them: one line per row is needed
            each = [line for line in each if len(parse_rows(line, (), SOURCES[source].tag))]
        others: list[bytes] = []
        held = self._strangers.pop(source, [])
        for i, (t, is_strange) in enumerate(zip(rows.t_wall_ns.tolist(), strange, strict=True)):
            if not is_strange or (held and abs(t - held[-1][0]) > LEAP_S * NS_PER_S):
                self.counts["stray"] += len(held)
                held = []
            if not is_strange:
                others.append(each[i])
                continue
            held.append((t, each[i]))
            if len(held) == AGREE:
                yield from self._again(source, others)
                self._start_anew(source, held[0][0])
                yield from self._again(source, [line for _, line in held] + each[i + 1 :])
                return
        yield from self._again(source, others)
        if held:
            self._strangers[source] = held

    def _start_anew(self, source: str, origin_ns: int) -> None:
        """Begin a grid; what is known of the machine's past stays unless it is long ago."""
        newest = max(self._newest.values(), default=origin_ns)
        step_s = (origin_ns - newest) / NS_PER_S
        fell = origin_ns < self._newest.get(source, 0)
        why = _set_back_by(-step_s) if fell else f"nothing came for {step_s:.0f} s"
        self._origin, self._next_bin, self._restarted = origin_ns, 0, why
        self._rows, self._newest, self._strangers, self._offset = {}, {}, {}, {}
        self._reset_clocks()
        if abs(step_s) > LEAP_S:
            self._baseline = RunningMedian(self.layout.window.horizon_windows)

    def _again(self, source: str, lines: list[bytes]) -> Iterator[LiveWindow]:
        if not lines:
            return
        for line in lines:
            self._seen[source].pop(line_digest(line), None)
        yield from self.push(source, b"\n".join(lines))

    def _keep(self, source: str, rows: Rows) -> None:
        assert self._origin is not None
        if source in self._coarse:
            if np.any(rows.t_wall_ns % NS_PER_S):
                del self._coarse[source]
            else:
                runs = self._coarse[source].add(rows)
                self._runs[source] = np.append(self._runs[source], runs)
        self._newest[source] = max(self._newest.get(source, 0), int(rows.t_wall_ns.max()))
        known = self._rows.get(source)
        joined = rows if known is None else _joined(known, rows)
        if len(joined) > MAX_ROWS:
            self.counts["dropped"] += len(joined) - MAX_ROWS
            joined = joined.take(slice(len(joined) - MAX_ROWS, None))
            if source in self._coarse:
                self._runs[source] = self._runs[source][-MAX_ROWS:]
        self._rows[source] = joined
        begin = self._origin + self._next_bin * self.layout.window.bin_ns
        too_late = rows.t_wall_ns < begin - self.layout.window.max_age_ms * 1_000_000
        self.counts["late"] += int(np.count_nonzero(too_late)) if self._next_bin else 0

    # --- windows out

    def _settled(self) -> int:
        """Before this instant no row is expected any more."""
        polled = [t for name, t in self._newest.items() if SOURCES[name].expected_hz]
        waited = max(self._newest.values()) - QUIET_S * NS_PER_S
        newest = max([*polled, waited])
        return newest - self.layout.window.max_age_ms * 1_000_000

    def _finished(self, until_ns: int) -> Iterator[LiveWindow]:
        assert self._origin is not None
        window = self.layout.window
        while True:
            begin = self._origin + self._next_bin * window.bin_ns
            if begin + window.n_bins * window.bin_ns > until_ns:
                return
            self._forget(begin - window.max_age_ms * 1_000_000 - window.bin_ns)
            rows = self._on_clock()
            series = align(rows, Grid(begin, window.bin_ns, window.n_bins), self.layout)
            times = np.concatenate([each.t_wall_ns for each in rows.values()])
            before = times[times < begin + window.n_bins * window.bin_ns]
            yield self._window(begin, int(before.max()) if len(before) else None, series)

    def _window(self, begin: int, last: int | None, series: NDArray[np.float32]) -> LiveWindow:
        layout, start = self.layout, np.zeros(1, dtype=np.int64)
        features = _features(series, layout)
        baseline = self._baseline.push(features)
        names = tuple(SOURCES)
        coverage = source_coverage(series, start, layout, names)[0]
        made = LiveWindow(
            number=self._number,
            start_ns=begin,
            start_s=self._next_bin * layout.window.bin_ns / 1e9,
            last_ns=last,
            series=series,
            features=features,
            baseline=baseline,
            level=baseline.reshape(len(layout.channels), -1)[:, layout.stats.index("mean")],
            coverage={name: float(share) for name, share in zip(names, coverage, strict=True)},
            restarted=self._restarted,
        )
        self._restarted = ""
        self._number += 1
        self._next_bin += layout.window.stride_bins
        return made

    def silent(self, deployable: tuple[str, ...]) -> list[str]:
        """Polled sources among these that are ``QUIET_S`` behind the newest row, or never came.

        A silent source no longer holds windows up.
        """
        newest = max(self._newest.values(), default=0)
        return [
            name
            for name in deployable
            if SOURCES[name].expected_hz and newest - self._newest.get(name, 0) > QUIET_S * NS_PER_S
        ]

    def _reset_clocks(self) -> None:
        # of each source whose clock has been coarse so far: its clock, and the runs of its rows
        self._coarse = {s.name: CoarseClock() for s in SOURCES.values() if s.clock_may_be_coarse}
        self._runs = dict.fromkeys(self._coarse, np.zeros(0, dtype=np.int64))

    def _on_clock(self) -> dict[str, Rows]:
        return {
            name: replace(rows, t_wall_ns=self._coarse[name].instants(rows, self._runs[name]))
            if name in self._coarse
            else rows
            for name, rows in self._rows.items()
        }

    def _forget(self, before_ns: int) -> None:
        """Drop rows that no later window needs; keep one, so the source is known to have rows."""
        for name, rows in self._on_clock().items():
            keep = np.flatnonzero(rows.t_wall_ns >= before_ns)
            if not len(keep):
                keep = np.array([int(rows.t_wall_ns.argmax())])
            self._rows[name] = self._rows[name].take(keep)
            if name in self._coarse:
                self._runs[name] = self._runs[name][keep]

    # --- state, for a restart

    def remember(self, features: NDArray[np.float32]) -> None:
        """Windows ``(n_windows, n_features)`` that count as this machine's past."""
        for row in features[-self.layout.window.horizon_windows :]:
            self._baseline.push(row)

    @property
    def last_lines(self) -> dict[str, bytes]:
        """Per source the digest of the last line that came, after which a file goes on."""
        return {name: next(reversed(seen)) for name, seen in self._seen.items() if seen}

    def state(self) -> dict[str, NDArray[Any]]:
        """What a restarted scorer needs to go on, as arrays; clocks are learned again."""
        state: dict[str, NDArray[Any]] = {
            "past": np.array(list(self._baseline.rows), dtype=np.float32),
            "grid": np.array([self._origin or 0, self._next_bin, self._number], dtype=np.int64),
        }
        for name, rows in self._rows.items():
            state[f"rows.{name}"] = rows.values
            state[f"times.{name}"] = np.stack(
                [rows.t_wall_ns, rows.t_mono_ns, rows.has_mono.astype(np.int64)]
            )
        for name, seen in self._seen.items():
            # a sender may repeat them after a restart; rows of older lines come too late to count
            known = 2 * len(self._rows.get(name, ())) + 1
            if seen:
                state[f"last.{name}"] = np.frombuffer(b"".join([*seen][-known:]), np.uint8)
        return state

    def resume(self, state: dict[str, NDArray[Any]], now_ns: int) -> bool:
        """Go on from ``state`` if it is less than ``LEAP_S`` from now; returns whether it is.

        If its newest row is in the future, the clock was set back: windows restart, as in ``push``.
        """
        origin, next_bin, number = map(int, state["grid"])
        newest = [int(times[0].max()) for name, times in state.items() if name[:5] == "times"]
        if not newest or abs(now_ns - max(newest)) > LEAP_S * NS_PER_S:
            return False
        self._number = number
        self._baseline.rows = deque(state["past"], maxlen=self._baseline.rows.maxlen)
        for name in SOURCES:
            for digest in state.get(f"last.{name}", np.zeros(0, np.uint8)).reshape(-1, _DIGEST):
                self._seen[name][digest.tobytes()] = None
        if (ahead_s := (max(newest) - now_ns) / NS_PER_S) > STEP_S:
            self._restarted = _set_back_by(ahead_s)
            return True
        self._origin, self._next_bin = origin, next_bin
        for name in SOURCES:
            if f"times.{name}" not in state:
                continue
            wall, mono, has_mono = state[f"times.{name}"]
            empty = parse_rows(b"", self.layout.fields[name], SOURCES[name].tag)
            self._keep(
                name,
                replace(
                    empty,
                    t_wall_ns=wall,
                    t_mono_ns=mono,
                    has_mono=has_mono.astype(bool),
                    values=state[f"rows.{name}"],
                ),
            )
        return True


def _set_back_by(step_s: float) -> str:
    return f"clock set back by {step_s:.0f} s"


def line_digest(line: bytes) -> bytes:
    """What two lines share only if they are equal."""
    return blake2b(line, digest_size=_DIGEST).digest()


def _features(series: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """``(n_features,)``; a channel without a value costs nothing."""
    out = np.full((len(layout.channels), len(layout.stats)), np.nan, dtype=np.float32)
    present = ~np.isnan(series).all(axis=0)
    if np.any(present):
        found = summarise(series[:, present], np.zeros(1, dtype=np.int64), layout)
        out[present] = found.reshape(-1, len(layout.stats))
    return out.ravel()


def _joined(first: Rows, second: Rows) -> Rows:
    return replace(
        second,
        t_wall_ns=np.concatenate([first.t_wall_ns, second.t_wall_ns]),
        t_mono_ns=np.concatenate([first.t_mono_ns, second.t_mono_ns]),
        has_mono=np.concatenate([first.has_mono, second.has_mono]),
        values=np.concatenate([first.values, second.values]),
    )
