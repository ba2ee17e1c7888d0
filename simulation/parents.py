"""Recorded episodes as columns, read once: what children are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from config.errors import PhasewatchError
from episodes.format import EVENTS_FILE, LABELS_FILE, SOURCES
from episodes.reading import Episode, read_episode
from episodes.store import list_store
from episodes.validation import ValidationPolicy, validate
from features.alignment import instants
from features.registry import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class SimulationError(PhasewatchError):
    """A corpus cannot be simulated; the message says why and what to change."""


@dataclass(frozen=True)
class ParentId:
    """Which episode to make children of, and what decides where they may go."""

    episode_id: str
    path: Path
    sha256: str
    profile: str
    tier: int


@dataclass(frozen=True)
class SourceRecording:
    """One source of a parent, by time."""

    template: dict[str, Any]  # the first row as written: its fields and their order
    t_ns: NDArray[np.int64]  # (n_rows,) since the episode's start, rising
    values: dict[str, NDArray[np.float64]]  # by field, (n_rows,) each


@dataclass(frozen=True)
class Parent:
    """A recorded episode; times are in ns since its start."""

    episode_id: str
    meta: dict[str, Any]
    duration_ns: int
    labels: tuple[tuple[int, dict[str, Any]], ...]
    events: tuple[tuple[int, dict[str, Any]], ...]
    sources: dict[str, SourceRecording]


def find_parents(store: Path) -> tuple[ParentId, ...]:
    """The episodes of a store that children can be made of: recorded, accepted and regular.

    Raises:
        SimulationError: there is none.
        StoreError: it is no store.
    """
    found = []
    for stored in list_store(store).episodes:
        record, episode = validate(stored, ValidationPolicy(), LAYOUT.fields)
        if record.verdict == "accepted" and not record.synthetic and episode and _regular(episode):
            assert record.sha256 is not None  # of an archive that was read
            profile = record.profile or ""
            found.append(
                ParentId(record.episode_id, stored.path, record.sha256, profile, record.tier or 0)
            )
    if not found:
        raise SimulationError(
            f"{store}: must have an accepted episode that was recorded, got none; "
            "name another store with --from"
        )
    return tuple(sorted(found, key=lambda parent: parent.episode_id))


def _regular(episode: Episode) -> bool:
    """Whether every row of every source has a value of every field."""
    return all(not np.isnan(rows.values).any() for rows in episode.sources.values())


def read_parent(parent: ParentId) -> Parent:
    """Parse a parent.

    Raises:
        OSError, ArchiveError: see ``episodes.archive``.
    """
    episode = read_episode(parent.path, parent.episode_id, LAYOUT.fields)
    started = int(episode.meta["started_at_wall_ns"])
    return Parent(
        episode_id=episode.episode_id,
        meta=episode.meta,
        duration_ns=int(episode.meta["ended_at_wall_ns"]) - started,
        labels=_moments(episode, LABELS_FILE, started),
        events=_moments(episode, EVENTS_FILE, started),
        sources={name: _recording(episode, name, started) for name in SOURCES},
    )


def _moments(episode: Episode, file: str, started: int) -> tuple[tuple[int, dict[str, Any]], ...]:
    rows = [json.loads(line) for line in episode.members[file].splitlines() if line.strip()]
    return tuple(
        sorted(((row["t_wall_ns"] - started, row) for row in rows), key=lambda moment: moment[0])
    )


def _recording(episode: Episode, name: str, started: int) -> SourceRecording:
    rows = episode.sources[name]
    times = instants(name, rows)
    order = np.argsort(times, kind="stable")
    first = episode.members[SOURCES[name].file].split(b"\n", 1)[0]
    fields: Sequence[str] = [path[-1] for path in LAYOUT.fields[name]]
    return SourceRecording(
        template=json.loads(first),
        t_ns=times[order] - started,
        values={field: rows.values[order, i] for i, field in enumerate(fields)},
    )
