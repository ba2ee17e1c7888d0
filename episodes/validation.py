"""Verdicts on episodes: is one usable, and if not, why exactly.

Every check adds a reason and none stops the others, so one sweep lists everything to fix. The store
and model inputs are not known here.
"""

from __future__ import annotations

import hashlib
import traceback
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic.dataclasses

from config.errors import PhasewatchError
from episodes.archive import ArchiveError, read_packed
from episodes.environment import retry, unreadable_error
from episodes.format import (
    EVENTS_FILE,
    FAILED,
    JUSTIFYING_EVENT,
    LABELS_FILE,
    MAX_NAME,
    META_FILE,
    NS_PER_S,
    PHASES,
    READ_FILES,
    SCHEMA_VERSION,
    SOURCES,
)
from episodes.jsonl import MAX_OBJECTS, FieldPath, Rows, is_int64
from episodes.reading import Episode, parse_episode
from episodes.settings import SETTINGS, NotNegative, NotNegativeInt, Share
from episodes.trust import MARGIN_S, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from episodes.store import StoredEpisode

VERDICTS = ("accepted", "degraded", "rejected", "errored")
USABLE = ("accepted", "degraded")

VERDICT_OF_REASON = {
    "tar_hash_mismatch": "rejected",
    "file_hash_mismatch": "rejected",
    "unsafe_archive": "rejected",
    "broken_archive": "rejected",
    "renamed_archive": "rejected",
    "schema": "rejected",
    "labels_out_of_order": "rejected",
    "unknown_label": "rejected",
    "failed_label": "rejected",
    "infection_without_event": "rejected",
    "outside_episode": "rejected",
    "no_trusted_clock": "rejected",
    "too_short": "rejected",
    "too_few_rows": "rejected",
    "conflicting_contents": "rejected",
    "listed_file_absent": "errored",
    "io_error": "errored",
    "unforeseen_error": "errored",
    "source_absent": "degraded",
    "rows_missing": "degraded",
    "source_gap": "degraded",
    "source_offset": "degraded",
    "field_absent": "degraded",
    "repeated_rows": "degraded",
    "clock_step": "degraded",
    "netflow_absent": "degraded",
    "not_in_index": "degraded",
}
"""Reason -> the verdict it leads to. The worst one wins: rejected, errored, degraded."""

_WORST_FIRST = ("rejected", "errored", "degraded")
_SOURCE_OF_FILE = {source.file: name for name, source in SOURCES.items()}
_POLLED = tuple(source for source in SOURCES.values() if source.expected_hz)


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=SETTINGS)
class ValidationPolicy:
    """The thresholds of verdicts that can be set; the others are fixed, beside what they limit."""

    min_duration_s: NotNegative = 15.0
    max_duration_s: NotNegative = 10_800.0  # what a file may hold; a clock off would need terabytes
    min_rows: NotNegativeInt = 100
    min_row_share: NotNegative = 0.8  # of the rows expected at the source's rate
    max_gap_s: NotNegative = 2.0
    max_source_offset_s: NotNegative = 2.0
    max_repeated_share: Share = 0.01  # of the rows of a source
    max_step_back_s: NotNegative = 1.0


_BY_SOURCE = (
    "rows", "rows_repeated", "rows_outside", "coverage", "largest_gap_s", "unusable_values",
)  # fmt: skip
_PER_KEY: dict[str, Sequence[str]] = {
    **dict.fromkeys(_BY_SOURCE, tuple(SOURCES)), "seconds": tuple(PHASES)
}  # fmt: skip
"""Fields of a record that have a value per source or phase."""


@dataclass(frozen=True)
class EpisodeRecord:
    """One row of the validation index."""

    episode_id: str
    host_id: str
    batch: str
    verdict: str
    reasons: tuple[str, ...]
    details: tuple[str, ...]  # one per reason, in the same order
    flags: tuple[str, ...]  # worth knowing, but no reason to degrade
    sample_name: str | None
    sample_sha256: str | None
    image_sha256: str  # of the VM's image; empty: not stated
    profile: str | None
    tier: int | None
    synthetic: bool
    parent_episode_id: str  # that a simulated episode was made from; empty: recorded
    producer_commit: str | None
    producer_dirty: bool | None
    schema_version: int | None
    sha256: str | None  # of the archive as read
    size_bytes: int | None
    received_at_wall: str | None
    started_at_wall_ns: int | None
    ended_at_wall_ns: int | None
    duration_s: float | None
    rows: dict[str, int]  # by source
    rows_repeated: dict[str, int]
    rows_outside: dict[str, int]  # of the episode's bounds
    coverage: dict[str, float | None]  # by source: rows / expected rows; None: no rate expected
    largest_gap_s: dict[str, float | None]
    unusable_values: dict[str, int]
    seconds: dict[str, float]  # by phase

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> EpisodeRecord:
        """The record of which ``as_row`` gave this row."""
        values: dict[str, Any] = {}
        for each in fields(cls):
            if each.name in _PER_KEY:
                prefix = f"{each.name}_"
                values[each.name] = {key: row[prefix + key] for key in _PER_KEY[each.name]}
            else:
                value = row[each.name]
                values[each.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    @property
    def usable(self) -> bool:
        return self.verdict in USABLE

    @property
    def line(self) -> str:
        """For people: the episode, its verdict, and every reason with its code."""
        reasons = [f"{d} [{code}]" for code, d in zip(self.reasons, self.details, strict=True)]
        head = " ".join(filter(None, (self.episode_id, self.host_id, self.verdict)))
        return head + (f": {'; '.join(reasons)}" if reasons else "")

    def with_reason(self, code: str, detail: str) -> EpisodeRecord:
        """The same record with one more reason, and the verdict that follows."""
        reasons = (*self.reasons, code)
        return replace(
            self, verdict=_verdict(reasons), reasons=reasons, details=(*self.details, detail)
        )

    @classmethod
    def columns(cls) -> list[str]:
        """The names in ``as_row``, in its order."""
        names = [each.name for each in fields(cls)]
        return [name for name in names if name not in _PER_KEY] + [
            f"{name}_{key}" for name in names for key in _PER_KEY.get(name, ())
        ]

    def as_row(self) -> dict[str, Any]:
        """Flat, for a table: one column per source or phase."""
        row: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("reasons", "details", "flags"):
            row[name] = list(row[name])
        for name in [name for name, value in row.items() if isinstance(value, dict)]:
            row |= {f"{name}_{key}": value for key, value in row.pop(name).items()}
        return row


_LONGEST = 500  # characters of a detail: an episode may say anything, at any length


@dataclass
class _Findings:
    reasons: list[tuple[str, str]] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def add(self, code: str, detail: str) -> None:
        assert code in VERDICT_OF_REASON, code
        self.reasons.append((code, detail if len(detail) <= _LONGEST else f"{detail[:_LONGEST]}…"))

    @property
    def verdict(self) -> str:
        return _verdict(code for code, _ in self.reasons)


def _verdict(reasons: Iterable[str]) -> str:
    verdicts = {VERDICT_OF_REASON[code] for code in reasons}
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "accepted")


def validate(
    stored: StoredEpisode,
    policy: ValidationPolicy,
    fields: Mapping[str, Sequence[FieldPath]],
) -> tuple[EpisodeRecord, Episode | None]:
    """Validate one episode; a faulty episode never raises.

    Args:
        fields: the values to parse (see ``read_episode``), so extraction need not read again.

    Returns:
        The index row, and the episode where it could be read at all.

    Raises:
        MachineError: the archive could not be read, or there was no memory.
    """
    if stored.unreadable:
        raise unreadable_error(stored.path, stored.unreadable)
    return retry(lambda: _validate(stored, policy, fields), stored.path)


def _validate(
    stored: StoredEpisode,
    policy: ValidationPolicy,
    fields: Mapping[str, Sequence[FieldPath]],
) -> tuple[EpisodeRecord, Episode | None]:
    findings = _Findings()
    episode: Episode | None = None
    sha256: str | None = None
    try:
        _check_index(stored, findings)
        if stored.size_bytes is not None:
            packed = read_packed(stored.path)
            sha256 = hashlib.sha256(packed).hexdigest()
            indexed = sorted({row.sha256 for row in stored.index_rows})
            if indexed and sha256 not in indexed:
                findings.add(
                    "tar_hash_mismatch",
                    f"the archive's sha256 is {sha256[:12]}…, the index says {indexed[0][:12]}…",
                )
            episode = parse_episode(packed, stored.episode_id, fields)
            _check_content(episode, stored, policy, fields, findings)
    except ArchiveError as error:
        findings.add(error.code, error.detail)
    except (OSError, MemoryError):  # what the environment did is no verdict
        raise
    except Exception as error:  # one episode must not stop the sweep
        findings.add("unforeseen_error", where(error))
    return _record(stored, sha256, episode, findings), episode


def validate_content(
    episode: Episode,
    stored: StoredEpisode,
    policy: ValidationPolicy,
    fields: Mapping[str, Sequence[FieldPath]],
) -> EpisodeRecord:
    """Validate an episode in memory as ``validate`` would an archive with the indexed hash.

    Args:
        stored: with at least one row of the index.
    """
    findings = _Findings()
    _check_index(stored, findings)
    _check_content(episode, stored, policy, fields, findings)
    return _record(stored, stored.index_rows[0].sha256, episode, findings)


def _check_content(
    episode: Episode,
    stored: StoredEpisode,
    policy: ValidationPolicy,
    fields: Mapping[str, Sequence[FieldPath]],
    findings: _Findings,
) -> None:
    _check_meta(episode, stored, findings)
    _check_files(episode, findings)
    _check_labels(episode, findings)
    _check_bounds(episode, findings)
    _check_extent(episode, policy, findings)
    _check_sources(episode, policy, fields, findings)


HINT = "\nRejected and errored episodes are not used without --anyway (Python: anyway=True)."
"""Ends the message of ``check_usable``; of many episodes it is shown once."""


class EpisodeError(PhasewatchError):
    """An episode is not used, because of its verdict; the message has the reasons."""

    def __init__(self, record: EpisodeRecord, hint: str = ""):
        super().__init__(record.line + hint)
        self.record = record


@dataclass(frozen=True)
class ValidatedEpisode(Episode):
    """An episode with its verdict."""

    record: EpisodeRecord

    def __repr__(self) -> str:
        return f"<episode {self.record.line}>"  # not its megabytes


def read_validated(
    stored: StoredEpisode, policy: ValidationPolicy, fields: Mapping[str, Sequence[FieldPath]]
) -> ValidatedEpisode:
    """Read and validate one episode, usable or not.

    Raises:
        EpisodeError: it cannot be read.
    """
    record, episode = validate(stored, policy, fields)
    if episode is None:
        raise EpisodeError(record)
    return ValidatedEpisode(**vars(episode), record=record)


def check_usable(record: EpisodeRecord, *, anyway: bool) -> None:
    """Refuse a rejected or errored episode.

    Raises:
        EpisodeError: it is one, and ``anyway`` is not set.
    """
    if not (record.usable or anyway):
        raise EpisodeError(record, HINT)


def where(error: Exception) -> str:
    """Type, place and text of an exception, in one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {error}"


def _check_index(stored: StoredEpisode, findings: _Findings) -> None:
    if not stored.in_store:
        return
    hashes = sorted({row.sha256 for row in stored.index_rows})
    if len(hashes) > 1:
        findings.add(
            "conflicting_contents",
            f"the index lists {len(hashes)} different archives for this id: "
            + ", ".join(h[:12] for h in hashes),
        )
    if stored.other_hosts:
        findings.add(
            "conflicting_contents",
            f"this id is also used by host(s) {', '.join(stored.other_hosts)}",
        )
    if not stored.index_rows:
        findings.add("not_in_index", "on disk without a row in index.jsonl")
    if stored.size_bytes is None:
        findings.add(
            "listed_file_absent", f"in index.jsonl, but {stored.path.name} is {stored.absence}"
        )


def _check_meta(episode: Episode, stored: StoredEpisode, findings: _Findings) -> None:
    if episode.meta_problem:
        findings.add("schema", f"{META_FILE}: {episode.meta_problem}")
        return
    meta = episode.meta
    types: dict[str, type] = {
        "episode_id": str,
        "host_id": str,
        "schema_version": int,
        "started_at_wall_ns": int,
        "ended_at_wall_ns": int,
        "sample.name": str,
        "sample.profile": str,
        "sample.sha256": str,
        "experiment.tier": int,
        "files": dict,
    }
    for name, kind in types.items():
        value = _dig(meta, name)
        if not isinstance(value, kind) or (kind is int and not is_int64(value)):
            findings.add("schema", f"{META_FILE}: {name} is missing or of the wrong type")
        elif isinstance(value, str) and len(value) > MAX_NAME:
            findings.add("schema", f"{META_FILE}: {name} must be at most {MAX_NAME} characters")
    named = {"episode_id": stored.episode_id} | (
        {"host_id": stored.host_id} if stored.in_store else {}
    )
    for name, expected in named.items():
        if isinstance(meta.get(name), str) and meta[name] != expected:
            findings.add("schema", f"{META_FILE}: {name} is {meta[name]!r}, stored as {expected!r}")
    version = meta.get("schema_version")
    if is_int64(version) and version != SCHEMA_VERSION:
        findings.add(
            "schema", f"{META_FILE}: schema_version must be {SCHEMA_VERSION}, got {version}"
        )
    for row in stored.index_rows[:1]:
        if is_int64(meta.get("schema_version")) and meta["schema_version"] != row.schema_version:
            findings.add(
                "schema",
                f"{META_FILE}: schema_version is {meta['schema_version']}, the index says "
                f"{row.schema_version}",
            )
    if _dig(meta, "code_version.commit") in (None, "", "unknown"):
        findings.flags.append("producer_commit_unknown")
    if _dig(meta, "code_version.dirty") is not False:
        findings.flags.append(
            "producer_dirty" if _dig(meta, "code_version.dirty") else "producer_dirty_unknown"
        )


def _check_files(episode: Episode, findings: _Findings) -> None:
    listed = _listed_files(episode)
    for name, facts in sorted(listed.items()):
        if name not in episode.members:
            if name in READ_FILES:
                findings.add(
                    "listed_file_absent",
                    f"{META_FILE} lists {name}, but the archive does not contain it",
                )
            continue
        content = episode.members[name]
        if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str):
            findings.add("schema", f"{META_FILE}: files.{name}.sha256 is missing or not a string")
        elif hashlib.sha256(content).hexdigest() != facts["sha256"].lower():
            findings.add("file_hash_mismatch", f"{name}: sha256 is not the one in {META_FILE}")
        elif is_int64(facts.get("rows")) and facts["rows"] != _row_count(episode, name):
            findings.flags.append(f"row_count_differs:{name}")
    for name in sorted(episode.members.keys() - listed.keys() - {META_FILE}):
        findings.flags.append(f"file_not_listed:{name}")


def _row_count(episode: Episode, name: str) -> int:
    """Lines of a file that are not blank."""
    if name in _SOURCE_OF_FILE:
        return episode.sources[_SOURCE_OF_FILE[name]].n_lines
    content = episode.members[name]
    if (n_ends := content.count(b"\n")) > MAX_OBJECTS:
        return n_ends  # too many anyway; there could be tens of millions
    return sum(1 for line in content.split(b"\n") if line.strip())


def _listed_files(episode: Episode) -> dict[str, Any]:
    listed = episode.meta.get("files")
    return listed if isinstance(listed, dict) else {}


_MOST_NAMED = 20  # unknown labels


def _check_labels(episode: Episode, findings: _Findings) -> None:
    for name, moments in ((LABELS_FILE, episode.labels), (EVENTS_FILE, episode.events)):
        for problem in moments.problems:
            findings.add("schema", f"{name}: {problem}")
    labels = episode.labels
    if LABELS_FILE not in episode.members:
        if LABELS_FILE not in _listed_files(episode):  # else the reason is listed_file_absent
            findings.add("schema", f"{LABELS_FILE}: missing")
        return
    if not labels.names:
        findings.add("schema", f"{LABELS_FILE}: no label")
        return
    backwards = np.flatnonzero(np.diff(labels.t_wall_ns) < 0)
    if len(backwards):
        findings.add(
            "labels_out_of_order",
            f"{LABELS_FILE}: label {backwards[0] + 2} is earlier than the one before it",
        )
    if FAILED in labels.names:
        findings.add("failed_label", f"{LABELS_FILE}: the recording failed (phase 'failed')")
    unknown = sorted(set(labels.names) - {*PHASES, FAILED})
    for name in unknown[:_MOST_NAMED]:
        findings.add(
            "unknown_label",
            f"{LABELS_FILE}: phase must be one of {', '.join(PHASES)}, got {name!r}",
        )
    if len(unknown) > _MOST_NAMED:
        findings.add("unknown_label", f"{LABELS_FILE}: and {len(unknown) - _MOST_NAMED} more")
    for phase, event in JUSTIFYING_EVENT.items():
        times = [t for t, name in zip(labels.t_wall_ns, labels.names, strict=True) if name == phase]
        events = zip(episode.events.t_wall_ns, episode.events.names, strict=True)
        happened = [t for t, name in events if name == event]
        if times and (not happened or min(times) < min(happened)):
            findings.add("infection_without_event", f"{phase} with no {event} at or before it")


def _check_bounds(episode: Episode, findings: _Findings) -> None:
    if episode.bounds is None:  # a reason already: the meta lacks a time
        return
    for name, moments in ((LABELS_FILE, episode.labels), (EVENTS_FILE, episode.events)):
        outside = np.flatnonzero(episode.bounds.outside(moments.t_wall_ns))
        if len(outside):
            findings.add(
                "outside_episode",
                f"{name}: {len(outside)} of {len(moments.names)} rows lie more than {MARGIN_S} s "
                f"outside the start and end given in {META_FILE}; the first is "
                f"{moments.names[outside[0]]!r}",
            )


def _check_extent(episode: Episode, policy: ValidationPolicy, findings: _Findings) -> None:
    total = sum(len(rows) for rows in episode.sources.values())
    if total < policy.min_rows:
        needed = f"at least {policy.min_rows} are needed"
        findings.add("too_few_rows", f"{total} telemetry rows; {needed}")
    duration = _duration_s(episode.meta)
    if duration is not None and duration < policy.min_duration_s:
        needed = f"must be at least {policy.min_duration_s:g} s"
        findings.add("too_short", f"lasts {duration:.1f} s; {needed}")
    if duration is not None and duration > policy.max_duration_s:
        findings.add("schema", f"{META_FILE}: {duration:.0f} s, over {policy.max_duration_s:g} s")
    span = _span_s(episode)
    if span > policy.max_duration_s:
        findings.add(
            "schema", f"labels and telemetry span {span:.0f} s, over {policy.max_duration_s:g} s"
        )


def _check_sources(
    episode: Episode,
    policy: ValidationPolicy,
    fields: Mapping[str, Sequence[FieldPath]],
    findings: _Findings,
) -> None:
    for name, rows in episode.sources.items():
        usage, polled = episode.usage[name], SOURCES[name] in _POLLED
        for problem in rows.problems:
            findings.add("schema", f"{SOURCES[name].file}: {problem}")
        if usage.n_repeated > policy.max_repeated_share * usage.n_rows:
            findings.add(
                "repeated_rows",
                f"{name}: {usage.n_repeated} of {usage.n_rows} lines repeat an earlier one, "
                f"over {policy.max_repeated_share:.0%}",
            )
        elif usage.n_repeated:
            findings.flags.append(f"repeated_rows:{name}")
        if usage.n_outside:
            findings.flags.append(f"rows_outside:{name}")
        if usage.absence:
            findings.add(
                "source_absent" if polled else "netflow_absent", f"{name}: {_absence(usage)}"
            )
            continue
        if np.any(usage.silent):
            silent = zip(fields[name], usage.silent, strict=True)
            names = [".".join(path) for path, is_silent in silent if is_silent]
            findings.add("field_absent", f"{name}: no usable value for {', '.join(names)}")
        fall = _largest_fall_s(rows)
        if fall > policy.max_step_back_s:
            findings.add(
                "clock_step", f"{name}: wall time falls by {fall:.1f} s while t_mono_ns rises"
            )
        if polled:
            _check_presence(name, episode, policy, findings)
    _check_offsets(episode, policy, findings)
    polled_usage = [episode.usage[source.name] for source in _POLLED]
    if all(usage.absence for usage in polled_usage) and any(
        usage.absence == "outside" for usage in polled_usage
    ):
        findings.add(
            "no_trusted_clock",
            "proc, qmp and guest all count as absent, at least one of them because its rows lie "
            "outside the bounds",
        )


def _absence(usage: Usage) -> str:
    """Why a source counts as absent."""
    n_rows = usage.n_rows - usage.n_repeated
    return {
        "no_rows": "no rows",
        "outside": f"{usage.n_outside} of {n_rows} rows lie more than {MARGIN_S} s outside the "
        f"start and end in {META_FILE}; its clock is wrong",
        "no_values": f"no usable value in {n_rows} rows",
        None: "",
    }[usage.absence]


def _check_presence(
    name: str, episode: Episode, policy: ValidationPolicy, findings: _Findings
) -> None:
    share = _coverage(name, episode)
    if share is not None and share < policy.min_row_share:
        findings.add(
            "rows_missing",
            f"{name}: {share:.0%} of the rows expected, under {policy.min_row_share:.0%}",
        )
    gap = _largest_gap_s(_times(name, episode))
    if gap is not None and gap > policy.max_gap_s:
        findings.add(
            "source_gap", f"{name}: {gap:.1f} s without a row, over {policy.max_gap_s:g} s"
        )


def _check_offsets(episode: Episode, policy: ValidationPolicy, findings: _Findings) -> None:
    times = {source.name: _times(source.name, episode) for source in _POLLED}
    times = {name: t for name, t in times.items() if len(t)}
    for place, end in (("first", np.min), ("last", np.max)):
        ends = {name: int(end(t)) for name, t in times.items()}
        if ends and max(ends.values()) - min(ends.values()) > policy.max_source_offset_s * NS_PER_S:
            middle = float(np.median(list(ends.values())))
            name = max(ends, key=lambda source: abs(ends[source] - middle))
            findings.add(
                "source_offset",
                f"{name}: its {place} row is over {policy.max_source_offset_s:g} s away from "
                "the other sources'",
            )


def _record(
    stored: StoredEpisode, sha256: str | None, episode: Episode | None, findings: _Findings
) -> EpisodeRecord:
    meta = episode.meta if episode else {}
    duration = _duration_s(meta)
    sources = episode.sources if episode else {}
    usage = episode.usage if episode else {}
    row = stored.index_rows[0] if stored.index_rows else None
    return EpisodeRecord(
        episode_id=stored.episode_id,
        host_id=stored.host_id if stored.in_store else _typed(meta, "host_id", str) or "",
        batch=stored.batch,
        verdict=findings.verdict,
        reasons=tuple(code for code, _ in findings.reasons),
        details=tuple(_writable(detail) for _, detail in findings.reasons),
        flags=tuple(findings.flags),
        sample_name=_typed(meta, "sample.name", str),
        sample_sha256=_hash(meta, "sample.sha256"),
        image_sha256=_hash(meta, "vm.image_sha256") or "",
        profile=_typed(meta, "sample.profile", str),
        tier=_typed(meta, "experiment.tier", int),
        synthetic=meta.get("synthetic") is True,
        parent_episode_id=_typed(meta, "parent_episode_id", str) or "",
        producer_commit=_typed(meta, "code_version.commit", str)
        or (row.code_commit if row else None),
        producer_dirty=_typed(meta, "code_version.dirty", bool),
        schema_version=_typed(meta, "schema_version", int),
        sha256=sha256,
        size_bytes=stored.size_bytes,
        received_at_wall=row.received_at_wall if row else None,
        started_at_wall_ns=_typed(meta, "started_at_wall_ns", int),
        ended_at_wall_ns=_typed(meta, "ended_at_wall_ns", int),
        duration_s=duration,
        rows={name: usage[name].n_rows if usage else 0 for name in SOURCES},
        rows_repeated={name: usage[name].n_repeated if usage else 0 for name in SOURCES},
        rows_outside={name: usage[name].n_outside if usage else 0 for name in SOURCES},
        coverage={name: _coverage(name, episode) if episode else None for name in SOURCES},
        largest_gap_s={
            name: _largest_gap_s(_times(name, episode)) if episode else None for name in SOURCES
        },
        unusable_values={
            name: int(sources[name].unusable.sum()) if name in sources else 0 for name in SOURCES
        },
        seconds=_seconds_by_phase(episode),
    )


def _dig(meta: dict[str, Any], path: str) -> Any:
    value: Any = meta
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _typed(meta: dict[str, Any], path: str, kind: type) -> Any:
    value = _dig(meta, path)
    if kind is int:
        return value if is_int64(value) else None
    if isinstance(value, str):
        value = _writable(value) if len(value) <= MAX_NAME else None
    return value if isinstance(value, kind) else None


def _writable(text: str) -> str:
    """The text as a table can hold it: JSON allows half a character (a lone surrogate)."""
    return text.encode("utf-8", "replace").decode()


def _hash(meta: dict[str, Any], path: str) -> str | None:
    """A hash in one spelling, so that equal contents have equal hashes."""
    value = _typed(meta, path, str)
    return value.lower() if isinstance(value, str) else None


def _duration_s(meta: dict[str, Any]) -> float | None:
    started = _typed(meta, "started_at_wall_ns", int)
    ended = _typed(meta, "ended_at_wall_ns", int)
    return None if started is None or ended is None else (ended - started) / NS_PER_S


def _span_s(episode: Episode) -> float:
    times = [episode.labels.t_wall_ns, *(rows.t_wall_ns for rows in episode.sources.values())]
    filled = [t for t in times if len(t)]
    if not filled:
        return 0.0
    return (max(int(t.max()) for t in filled) - min(int(t.min()) for t in filled)) / NS_PER_S


def _coverage(name: str, episode: Episode) -> float | None:
    rate, duration = SOURCES[name].expected_hz, _duration_s(episode.meta)
    if rate is None or duration is None or duration <= 0:
        return None
    return int(np.count_nonzero(episode.usage[name].present)) / (rate * duration)


def _times(name: str, episode: Episode) -> NDArray[np.int64]:
    """When a source was present: the times of the rows that have values."""
    return episode.sources[name].t_wall_ns[episode.usage[name].present]


def _largest_fall_s(rows: Rows) -> float:
    """The most by which wall time falls from one row to the next in the file while mono rises."""
    wall, mono = rows.t_wall_ns[rows.has_mono], rows.t_mono_ns[rows.has_mono]
    falls = (wall[:-1] - wall[1:])[mono[1:] > mono[:-1]]
    return max(0.0, float(falls.max(initial=0)) / NS_PER_S)


def _largest_gap_s(t_wall_ns: NDArray[np.int64]) -> float | None:
    if len(t_wall_ns) < 2:
        return None
    return float(np.diff(np.sort(t_wall_ns)).max()) / NS_PER_S


def _seconds_by_phase(episode: Episode | None) -> dict[str, float]:
    seconds = dict.fromkeys(PHASES, 0.0)
    if episode is None or not episode.labels.names:
        return seconds
    order = np.argsort(episode.labels.t_wall_ns, kind="stable")
    starts = episode.labels.t_wall_ns[order]
    ended = _typed(episode.meta, "ended_at_wall_ns", int)
    end = max(ended or 0, int(starts[-1]))
    for i, begin, finish in zip(order, starts, [*starts[1:], end], strict=True):
        if episode.labels.names[i] in seconds:
            seconds[episode.labels.names[i]] += (int(finish) - int(begin)) / NS_PER_S
    return seconds


def summary_line(verdicts: Sequence[str]) -> str:
    """``accepted + degraded + rejected + errored = n``, the last line of every sweep."""
    counts = Counter(verdicts)
    parts = " + ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{parts} = {len(verdicts)}"
