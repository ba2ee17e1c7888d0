"""Names and constants of the episode format: phases, sources, files, identifiers.

Only facts of the format live here; reading is in ``reading``, verdicts in ``validation``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache

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

MAX_NAME = 200
"""Characters of a phase, an event, a job, or a string of ``meta.json`` that is used."""

ARCHIVE_SUFFIX = ".tar.zst"

_HOST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_DIGITS = str.maketrans("ABCDEFGHJKMNPQRSTVWXYZ", "ABCDEFGHIJKLMNOPQRSTUV".lower())  # for int()


def is_text(value: object) -> bool:
    """Whether ``value`` is a string that UTF-8 can hold: JSON allows half a character, no file."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


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
    return int(episode_id[:10].translate(_DIGITS), 32)


_DAY_MS = 86_400_000
_LAST_DAY = 253_402_300_799_999 // _DAY_MS  # 9999-12-31, the last that has a four-digit year


def episode_day(episode_id: str) -> str:
    """The UTC day of a ULID, as ``2026-11-21``."""
    return _day(min(episode_time_ms(episode_id) // _DAY_MS, _LAST_DAY))


@lru_cache(maxsize=4096)
def _day(days: int) -> str:
    """The day that is so many days after the epoch; a large store has few of them."""
    return (date(1970, 1, 1) + timedelta(days)).isoformat()


def batch_key(host_id: str, episode_id: str) -> str:
    """``<host>.<UTC day of the ULID>``: the unit of ingestion, and a Dagster partition key."""
    return f"{host_id}.{episode_day(episode_id)}"
