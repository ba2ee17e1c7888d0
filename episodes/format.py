"""Names and constants of the episode format: phases, sources, files, identifiers.

Only facts of the format live here; reading is in ``reading``, judging in ``validation``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

PHASES = ("clean", "armed", "infecting", "infected_running", "dormant")
"""The classes, in class order."""

CLEAN = "clean"
INFECTED = ("infecting", "infected_running")
"""The phases in which a detector should raise an alarm: the VM is being or has been taken over."""

FAILED = "failed"
"""A label that is not a class: an episode that carries it is rejected."""

JUSTIFYING_EVENT = {"infecting": "exploit_fire", "infected_running": "session_open"}
"""Phase -> the event that must have happened at or before its label."""

NS_PER_S = 1_000_000_000

SCHEMA_VERSION = 1
"""The version of the format that is read here."""

JOB_EVENTS = {"benign_job_start": True, "benign_job_end": False}
"""Event that marks a benign job -> whether the job starts."""


@dataclass(frozen=True, slots=True)
class Source:
    """One telemetry source: the file it fills and the tag its rows carry."""

    name: str
    file: str
    tag: str
    deployable: bool
    expected_hz: float | None  # None: rows appear only when something happens
    clock_may_be_coarse: bool = False  # t_wall_ns may have 1 s precision


SOURCES = {
    source.name: source
    for source in (
        Source("proc", "telemetry-proc.jsonl", "host_proc", False, 10.0),
        Source("qmp", "telemetry-qmp.jsonl", "host_qmp", False, 10.0),
        Source("guest", "telemetry-guest.jsonl", "guest_agent", True, 10.0),
        Source("netflow", "netflow.jsonl", "bridge_pcap", True, None, clock_may_be_coarse=True),
    )
}

META_FILE = "meta.json"
LABELS_FILE = "labels.jsonl"
EVENTS_FILE = "events.jsonl"
READ_FILES = frozenset(
    {META_FILE, LABELS_FILE, EVENTS_FILE, *(source.file for source in SOURCES.values())}
)
"""Members of an archive that are read; any other regular file is allowed and ignored."""

ARCHIVE_SUFFIX = ".tar.zst"

_HOST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_CROCKFORD = {c: i for i, c in enumerate("0123456789ABCDEFGHJKMNPQRSTVWXYZ")}


def is_text(value: object) -> bool:
    """Whether ``value`` is a string that UTF-8 can hold: JSON allows half a character, no file."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def is_host_id(text: object) -> bool:
    """Whether ``text`` can name a host: safe as a folder name and as part of a partition key."""
    return isinstance(text, str) and _HOST_ID.fullmatch(text) is not None


def is_episode_id(text: object) -> bool:
    """Whether ``text`` is a ULID in canonical (upper-case) spelling."""
    return isinstance(text, str) and _ULID.fullmatch(text) is not None


def episode_time_ms(episode_id: str) -> int:
    """Unix milliseconds in the first ten characters of a ULID.

    Raises:
        ValueError: ``episode_id`` is not a ULID.
    """
    if not is_episode_id(episode_id):
        raise ValueError(
            f"episode id must be a ULID (26 characters of Crockford's base 32), got {episode_id!r}"
        )
    time_ms = 0
    for character in episode_id[:10]:
        time_ms = time_ms * 32 + _CROCKFORD[character]
    return time_ms


_LAST_DAY_MS = 253_402_300_799_999  # 9999-12-31, the last day that has a four-digit year


def episode_day(episode_id: str) -> str:
    """The UTC day of a ULID, as ``2026-11-21``."""
    time_ms = min(episode_time_ms(episode_id), _LAST_DAY_MS)
    return datetime.fromtimestamp(time_ms // 1000, tz=UTC).date().isoformat()


def batch_key(host_id: str, episode_id: str) -> str:
    """``<host>.<UTC day of the ULID>``: the unit of ingestion, and a Dagster partition key."""
    return f"{host_id}.{episode_day(episode_id)}"
