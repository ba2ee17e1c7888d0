"""Windows of one guest while its rows arrive, and their scores.

Rows are aligned by the batch code on a short buffer, so a live window is bit for bit the batch
window of the same rows. Only realistic checkpoints are accepted: a device cannot read the other
channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from episodes.format import NS_PER_S, SOURCES
from episodes.jsonl import Rows, parse_rows
from features.alignment import CoarseClock, Grid, align
from features.relative import RunningMedian, summary_inputs, tensor_inputs, window_means
from features.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from features.registry import Layout
    from models.checkpoint import Checkpoint


@dataclass(frozen=True)
class LiveWindow:
    """A window that no later row can change."""

    start_s: float  # since the stream's origin
    series: NDArray[np.float32]  # (n_timepoints, n_channels)
    features: NDArray[np.float32]  # (n_features,)
    baseline: NDArray[np.float32]  # (n_features,), of the machine's past, see features.relative
    level: NDArray[np.float32]  # (n_channels,)


class LiveWindows:
    """Turns lines of telemetry into windows.

    Rows must arrive within ``max_age_ms`` of each other's times: a window is finished when a polled
    source is that far past its end, because no later row can then change it. Until its first row a
    source is missing; batch code, which has the whole episode, may give 0. It also knows the
    episode's bounds, and all lines of a source: here lines are compared within one ``push``.

    Args:
        origin_ns: wall time at which the grid starts; in an episode that of its earliest label.
    """

    def __init__(self, layout: Layout, origin_ns: int):
        self._layout = layout
        self._origin = origin_ns
        self._rows: dict[str, Rows] = {}
        self._next_bin = 0
        self._last_polled = origin_ns
        self._baseline, self._level = (
            RunningMedian(layout.window.horizon_windows) for _ in range(2)
        )
        # of each source whose clock has been coarse so far: its clock, and the runs of its rows
        self._coarse = {s.name: CoarseClock() for s in SOURCES.values() if s.clock_may_be_coarse}
        self._runs = dict.fromkeys(self._coarse, np.zeros(0, dtype=np.int64))

    def push(self, source: str, lines: bytes) -> Iterator[LiveWindow]:
        """Take lines of one source, in any order; yields the windows they finish."""
        spec = SOURCES[source]
        rows = parse_rows(lines, self._layout.fields[source], spec.tag)
        if not len(rows):
            return
        if source in self._coarse:
            if np.any(rows.t_wall_ns % NS_PER_S):
                del self._coarse[source]
            else:
                runs = self._coarse[source].add(rows)
                self._runs[source] = np.append(self._runs[source], runs)
        known = self._rows.get(source)
        self._rows[source] = rows if known is None else _joined(known, rows)
        if spec.expected_hz:
            self._last_polled = max(self._last_polled, int(rows.t_wall_ns.max()))
        yield from self._finished(self._last_polled - self._layout.window.max_age_ms * 1_000_000)

    def close(self) -> Iterator[LiveWindow]:
        """The windows that are whole if no further row comes."""
        yield from self._finished(self._last_polled)

    def _finished(self, until_ns: int) -> Iterator[LiveWindow]:
        window = self._layout.window
        while True:
            begin = self._origin + self._next_bin * window.bin_ns
            if begin + window.n_bins * window.bin_ns > until_ns:
                return
            self._forget(begin - window.max_age_ms * 1_000_000 - window.bin_ns)
            grid = Grid(begin, window.bin_ns, window.n_bins)
            series = align(self._on_clock(), grid, self._layout)
            start = np.zeros(1, dtype=np.int64)
            features = summarise(series, start, self._layout)[0]
            means = window_means(series, start, self._layout)[0]
            yield LiveWindow(
                self._next_bin * window.bin_ns / 1e9,
                series,
                features,
                self._baseline.push(features),
                self._level.push(means),
            )
            self._next_bin += window.stride_bins

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


def _joined(first: Rows, second: Rows) -> Rows:
    return replace(
        second,
        t_wall_ns=np.concatenate([first.t_wall_ns, second.t_wall_ns]),
        t_mono_ns=np.concatenate([first.t_mono_ns, second.t_mono_ns]),
        has_mono=np.concatenate([first.has_mono, second.has_mono]),
        values=np.concatenate([first.values, second.values]),
    )


class LiveScorer:
    """Phase probabilities of live windows.

    Raises:
        ValueError: the checkpoint is not a realistic one.
    """

    def __init__(self, checkpoint: Checkpoint):
        if checkpoint.header["mode"] != "realistic":
            raise ValueError(
                f"live scoring needs a realistic checkpoint, got {checkpoint.variant.name}; "
                "a device cannot read its channels"
            )
        self._model = checkpoint.model
        self._kept = np.array(checkpoint.header["keep_mask"])
        self._on_features = checkpoint.header["input_kind"] == "summary"

    def score(self, window: LiveWindow) -> NDArray[np.float32]:
        """Probabilities ``(n_classes,)``."""
        inputs = (
            summary_inputs(window.features[None], window.baseline[None])
            if self._on_features
            else tensor_inputs(window.series[None], window.level[None])
        )
        return self._model.predict_proba(inputs[..., self._kept])[0]
