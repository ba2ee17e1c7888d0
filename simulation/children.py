"""One child of a parent: a crop of it, stretched, on another host, at another time.

Channels are rescaled by a factor of the host and a smaller one of the episode. Rates and levels are
those of the parent times that factor; what is attacked when follows the crop and the stretch.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from episodes.format import INFECTED, JUSTIFYING_EVENT, NS_PER_S, SOURCES
from features.registry import LAYOUT
from simulation.sheets import Sheet, make_sheet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from simulation.parents import Parent, SourceRecording
    from simulation.plan import Child

TICK_NS = 100_000_000
"""Rows of a polled source, and buckets of netflow, come this far apart."""

_STRETCH = 1.25  # at most, and one by it at least
_CROP = 0.25  # of the parent's time at most, at each end
_LEAD_NS = 12 * NS_PER_S  # of the parent, kept before its attack
_TAIL_NS = 15 * NS_PER_S  # of the parent, kept from the moment the attack runs
_SHORTEST_NS = 50 * NS_PER_S  # of the parent
_TOO_SHORT_S = 12
_HOST_SPREAD, _EPISODE_SPREAD = 0.2, 0.05  # of the logarithms of the factors
_NOT_SCALED = ("procs_running", "procs_blocked")  # too small to be multiplied
_FIRST_MOMENT_NS = 2_000_000  # labels and events begin a little after the episode

_KIND = {(c.source, c.path[-1]): c.kind for c in LAYOUT.channels}
_POSITION = {(c.source, c.path[-1]): i for i, c in enumerate(LAYOUT.channels)}


@dataclass(frozen=True)
class Crop:
    """What of a parent a child shows, and how much slower."""

    start_ns: int  # since the parent's start
    end_ns: int
    stretch: float

    @property
    def duration_ns(self) -> int:
        return int((self.end_ns - self.start_ns) * self.stretch)

    def moved(self, t_ns: int) -> int:
        """When something of the parent happens in the child."""
        return int((t_ns - self.start_ns) * self.stretch)


@dataclass
class Content:
    """What an episode is going to say. A defect may change all of it."""

    meta: dict[str, Any]
    labels: list[dict[str, Any]]
    events: list[dict[str, Any]]
    sources: dict[str, Sheet]

    @property
    def started_at_ns(self) -> int:
        return int(self.meta["started_at_wall_ns"])

    @property
    def ended_at_ns(self) -> int:
        return int(self.meta["ended_at_wall_ns"])

    def moment(self, t_ns: int, **named: str) -> dict[str, Any]:
        """A label or an event, by its time since the start."""
        return {"t_mono_ns": t_ns, "t_wall_ns": self.started_at_ns + t_ns, **named}


def make_content(child: Child, parent: Parent, seed: int) -> Content:
    """The content of a child without its defect; ``too_short`` alone is a matter of the cut."""
    random = np.random.default_rng([seed, child.number])
    cut = _draw_cut(child, parent, random)
    host = np.random.default_rng([seed, *child.host_id.encode()])
    factors = np.exp(
        _HOST_SPREAD * host.standard_normal(len(LAYOUT.channels))
        + _EPISODE_SPREAD * random.standard_normal(len(LAYOUT.channels))
    )
    booted_ns = int(random.integers(1, 30 * 86_400)) * NS_PER_S + int(random.integers(NS_PER_S))
    sources = {
        name: _netflow(recording, cut, factors, child, booted_ns)
        if SOURCES[name].expected_hz is None
        else _polled(name, recording, cut, factors, child.started_at_ns)
        for name, recording in parent.sources.items()
    }
    content = Content(meta=_meta(child, parent, cut, seed), labels=[], events=[], sources=sources)
    content.labels += _labels(content, parent, cut)
    content.events += _events(content, parent, cut)
    return content


def cut_of(child: Child, parent: Parent, seed: int) -> Crop:
    """What of its parent a child shows."""
    return _draw_cut(child, parent, np.random.default_rng([seed, child.number]))


def _draw_cut(child: Child, parent: Parent, random: np.random.Generator) -> Crop:
    """A crop that keeps the attack, if there is one and time for it, and what justifies it."""
    infected = [t for t, row in parent.labels if row["phase"] in INFECTED]
    fired = [t for t, row in parent.events if row["event"] in JUSTIFYING_EVENT.values()]
    running = [t for t, row in parent.labels if row["phase"] == "infected_running"]
    latest_start = min([*infected, *fired, parent.duration_ns]) - _LEAD_NS
    start = int(random.random() * max(0, min(_CROP * parent.duration_ns, latest_start)))
    earliest_end = max(start + _SHORTEST_NS, min(running, default=0) + _TAIL_NS)
    spare = max(0, min(_CROP * parent.duration_ns, parent.duration_ns - earliest_end))
    end = parent.duration_ns - int(random.random() * spare)
    stretch = _STRETCH ** (2 * random.random() - 1)
    longest_s = _TOO_SHORT_S if child.defect == "too_short" else child.longest_s
    if longest_s is not None:
        end = min(end, start + int(longest_s * NS_PER_S / stretch))
    return Crop(start, end, stretch)


def _polled(
    name: str,
    recording: SourceRecording,
    cut: Crop,
    factors: NDArray[np.float64],
    started_at_ns: int,
) -> Sheet:
    t = recording.t_ns
    ticks = _ticks(t, cut.duration_ns)
    asked = cut.start_ns + ticks / cut.stretch  # of the parent's time
    before = np.clip(np.searchsorted(t, asked, side="right") - 1, 0, max(0, len(t) - 2))
    after = np.minimum(before + 1, len(t) - 1)
    share = np.clip((asked - t[before]) / np.maximum(t[after] - t[before], 1), 0.0, 1.0)
    last = np.where(share >= 1.0, after, before)
    columns = {}
    for field, values in recording.values.items():
        factor = 1.0 if field in _NOT_SCALED else factors[_POSITION[name, field]]
        if _KIND[name, field] == "counter":
            held = values[before] + share * (values[after] - values[before])
            scaled = factor * (held[0] + cut.stretch * (held - held[0]))
        else:
            scaled = factor * values[last]
        if isinstance(recording.template[field], float):
            scaled = 100 * scaled
        columns[field] = np.maximum(np.rint(scaled), 0).astype(np.int64)
    columns |= {"t_mono_ns": ticks, "t_wall_ns": started_at_ns + ticks}
    for field, first in recording.template.items():
        if field.startswith("t_guest_"):  # stale clocks of the guest: they run on
            columns[field] = first + ticks
        elif field == "seq":
            columns[field] = first + np.arange(len(ticks))
    return make_sheet(recording.template, columns, len(ticks))


def _ticks(t_ns: NDArray[np.int64], duration_ns: int) -> NDArray[np.int64]:
    """When rows come: in the rhythm of the parent's, again from its start where it is too short."""
    period = int(t_ns[-1] - t_ns[0]) + TICK_NS
    rounds = np.arange(-(-duration_ns // period) + 1)
    ticks = (t_ns[None, :] + period * rounds[:, None]).ravel()
    return ticks[: int(np.searchsorted(ticks, duration_ns, side="right"))]


def _netflow(
    recording: SourceRecording,
    cut: Crop,
    factors: NDArray[np.float64],
    child: Child,
    booted_ns: int,
) -> Sheet:
    """Each bucket of the child is the one of the parent at its time, if there is any."""
    t = recording.t_ns
    bucket = np.rint((t - t[0]) / TICK_NS).astype(np.int64)
    row_of = np.full(int(bucket[-1]) + 1, -1)
    row_of[bucket] = np.arange(len(t))
    first = int(t[0] % TICK_NS)
    starts = np.arange(first, max(cut.duration_ns, first + 1), TICK_NS)
    asked = np.rint((cut.start_ns + starts / cut.stretch - t[0]) / TICK_NS).astype(np.int64)
    known = (asked >= 0) & (asked < len(row_of))
    rows = np.where(known, row_of[np.where(known, asked, 0)], -1)
    kept = rows >= 0
    if not kept.any():  # a source that ran has a row
        kept[0], rows[0] = True, 0
    starts, rows = starts[kept], rows[kept]
    columns = {}
    for field, values in recording.values.items():
        scaled = np.rint(factors[_POSITION["netflow", field]] * values[rows])
        columns[field] = np.where(values[rows] > 0, np.maximum(scaled, 1), 0).astype(np.int64)
    wall = child.started_at_ns + starts
    columns["t_wall_ns"] = wall - wall % NS_PER_S if child.coarse_netflow else wall
    columns["t_mono_ns"] = booted_ns + starts
    return make_sheet(recording.template, columns, len(rows))


def _labels(content: Content, parent: Parent, cut: Crop) -> list[dict[str, Any]]:
    """The labels within the cut, and first the phase that it begins in."""
    inside = [(t, row) for t, row in parent.labels if t < cut.end_ns]
    n_before = sum(t <= cut.start_ns for t, _ in inside)
    kept = inside[max(0, n_before - 1) :]
    return [
        content.moment(max(_FIRST_MOMENT_NS, cut.moved(t)), phase=row["phase"]) for t, row in kept
    ]


def _events(content: Content, parent: Parent, cut: Crop) -> list[dict[str, Any]]:
    """The events within the cut; the episode's start and end are the child's."""
    at = {"episode_start": _FIRST_MOMENT_NS, "episode_end": cut.duration_ns}
    events = []
    for t, row in parent.events:
        if row["event"] in at:
            t_ns = at[row["event"]]
        elif cut.start_ns <= t < cut.end_ns:
            t_ns = max(_FIRST_MOMENT_NS, cut.moved(t))
        else:
            continue
        named = {
            name: value for name, value in row.items() if name not in ("t_mono_ns", "t_wall_ns")
        }
        events.append(content.moment(t_ns, **named))
    return sorted(events, key=lambda event: event["t_wall_ns"])


def _meta(child: Child, parent: Parent, cut: Crop, seed: int) -> dict[str, Any]:
    meta = copy.deepcopy(parent.meta)
    ended_at_ns = child.started_at_ns + cut.duration_ns
    meta |= {
        "episode_id": child.episode_id,
        "host_id": child.host_id,
        "started_at_wall": rfc3339(child.started_at_ns),
        "ended_at_wall": rfc3339(ended_at_ns),
        "started_at_wall_ns": child.started_at_ns,
        "ended_at_wall_ns": ended_at_ns,
        "synthetic": True,
        "parent_episode_id": parent.episode_id,
        "simulation": {
            "seed": seed,
            "number": child.number,
            "from_s": cut.start_ns / NS_PER_S,
            "to_s": cut.end_ns / NS_PER_S,
            "stretch": cut.stretch,
            "defect": child.defect,
        },
    }
    digest = hashlib.sha256(f"simulated from {parent.episode_id}".encode()).hexdigest()
    meta["sample"] |= {"name": child.sample, "sha256": digest}
    meta["experiment"]["seed"] = child.number
    return meta


def rfc3339(t_ns: int) -> str:
    """``2026-11-21T20:04:36.879Z``."""
    at = datetime.fromtimestamp(t_ns // NS_PER_S, tz=UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{t_ns // 1_000_000 % 1000:03}Z"


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    """JSON lines as the lab writes them."""
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def result_of(sources: Mapping[str, Sheet], labels: int, events: int) -> dict[str, Any]:
    """The counts of rows that the meta states."""
    counts = {f"rows_{name}": len(sheet) for name, sheet in sources.items()}
    return counts | {"rows_labels": labels, "rows_events": events}
