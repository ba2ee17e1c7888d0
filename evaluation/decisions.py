"""What scorers decided on machines and what operators answered: reading the log, and counting it.

The hub writes the log, ``artifacts/decisions/<UTC day>.jsonl``. What is in it was seen by people
after training, so no dataset and no test is ever made from it.

Every line has a hash of itself and of the line before, across files, and ``head.json`` says which
is the last: a line that was changed, dropped, moved or repeated is found. Lines from before lines
were chained are covered by the first that is.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from config.messages import fault_text
from config.signing import Signed, unsealed

VERSION: Literal[1] = 1
SUFFIX = ".jsonl"
HEAD_FILE = "head.json"
RECENT = 10_000
"""Decisions of which it is known on which windows they are."""
FIRST = "0" * 64  # what the first line of a log follows on
_NAME = re.compile(r"(\d{4}-\d\d-\d\d)(?:\.(\d{4}))?\.jsonl")

Text = Annotated[str, Field(min_length=1, max_length=200)]


class LogRecord(BaseModel):
    """What every line says. Lines written before chaining have no ``prev`` and ``hash``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = VERSION
    kind: str
    at: float  # Unix seconds at which it was written
    prev: str | None = None
    hash: str | None = None


class DecisionRecord(LogRecord):
    """An alarm was raised or cleared, or a source or host went silent or came back."""

    kind: Literal["decision"] = "decision"
    event: dict[str, Any]  # the ``live_detection`` as the hub sent it


class Answer(BaseModel):
    """What an operator says of an alarm."""

    model_config = ConfigDict(extra="forbid")

    alarm_id: Text
    host: Text
    verdict: bool
    note: Annotated[str, Field(max_length=2000)] = ""


class AnswerRecord(Answer, LogRecord):
    """An operator says whether an alarm was right. A later answer replaces an earlier one."""

    kind: Literal["answer"] = "answer"


class TornRecord(LogRecord):
    """A line was cut off by a crash; what was left of it is kept in a file beside the log."""

    kind: Literal["torn"] = "torn"
    file: str
    bytes: int


class GapRecord(LogRecord):
    """When the hub started, the log ended before the line that its head names."""

    kind: Literal["gap"] = "gap"
    count: int  # of the head: how many chained lines there were
    last: str  # of the head: hash of the last


AnyRecord = DecisionRecord | AnswerRecord | TornRecord | GapRecord
RECORD_ADAPTER: TypeAdapter[AnyRecord] = TypeAdapter(
    Annotated[AnyRecord, Field(discriminator="kind")]
)


class LogHead(BaseModel):
    """Which line of the log is the last; the file is sealed, and signed if there is a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    count: Annotated[int, Field(ge=0)]  # chained lines
    hash: str  # of the last


def chain_record(record: AnyRecord, prev: str) -> tuple[bytes, str]:
    """A record as a line that follows on the line with hash ``prev``, and the line's own hash."""
    sealed = record.model_copy(update={"prev": prev, "hash": ""})
    line = sealed.model_dump_json(exclude_none=True).encode()
    digest = hashlib.sha256(line).hexdigest()
    return line.replace(b'"hash":""', f'"hash":"{digest}"'.encode(), 1) + b"\n", digest


def _hash_of(line: bytes, stated: str) -> str:
    return hashlib.sha256(line.rstrip(b"\n").replace(stated.encode(), b"", 1)).hexdigest()


class _CountedDecision(BaseModel):
    """Of a ``live_detection`` what is counted."""

    host: str
    model: str
    source: Literal["live", "replay"]
    phase: str | None
    alarm_id: str | None = None


@dataclass(frozen=True)
class Alarm:
    """An alarm of the log: whose it is, and what kind."""

    host: str
    model: str
    source: Literal["live", "replay"]
    silence: bool  # raised because nothing came any more


def window_key(event: Mapping[str, Any]) -> tuple[object, ...]:
    """By what a ``live_detection`` that is sent again is known."""
    names = ("host", "session", "replay_of", "window", "at", "alarm_id")
    return tuple(event.get(name) for name in names)


@dataclass
class LogContents:
    """The log as read: its alarms by id, the last answer to each, and what could not be read."""

    alarms: dict[str, Alarm] = field(default_factory=dict)
    answers: dict[str, AnswerRecord] = field(default_factory=dict)
    decisions: int = 0
    torn: int = 0
    gaps: int = 0
    recent: deque[tuple[object, ...]] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Which windows the newest decisions are on: see ``window_key``."""
    unreadable: list[str] = field(default_factory=list)  # file and line

    def add(self, record: AnyRecord) -> None:
        if isinstance(record, AnswerRecord):
            self.answers[record.alarm_id] = record
        elif isinstance(record, TornRecord):
            self.torn += 1
        elif isinstance(record, GapRecord):
            self.gaps += 1
        else:
            self.decisions += 1
            said = _CountedDecision.model_validate(record.event)
            if said.alarm_id and said.alarm_id not in self.alarms:
                alarm = Alarm(said.host, said.model, said.source, said.phase is None)
                self.alarms[said.alarm_id] = alarm
            self.recent.append(window_key(record.event))


class AnswerCounts(BaseModel):
    """Alarms of one model, live or replayed, and how many of the answered ones were true."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    source: Literal["live", "replay"]
    silence: bool
    alarms: int
    answered: int
    true: int

    @property
    def precision(self) -> float | None:
        """Share of the answered alarms that were true; None if none was answered."""
        return self.true / self.answered if self.answered else None


class Tally(BaseModel):
    """Counts of the whole log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decisions: int
    alarms: int
    answered: int
    true: int
    torn: int
    unreadable: list[str]
    by_model: list[AnswerCounts]

    @property
    def precision(self) -> float | None:
        """Of live machines' alarms, the share of the answered ones that were true."""
        live = [row for row in self.by_model if row.source == "live"]
        answered = sum(row.answered for row in live)
        return sum(row.true for row in live) / answered if answered else None


def log_files(folder: Path) -> list[Path]:
    """The files of the log, oldest first."""
    found = [(match.groups(""), path) for path in folder.glob(f"*{SUFFIX}")
             if (match := _NAME.fullmatch(path.name))]  # fmt: skip
    return [path for _, path in sorted(found)]


@dataclass(frozen=True)
class LogFault:
    """A place where the log is not as it was written."""

    where: str  # file and line
    kind: Literal[
        "unreadable", "changed", "dropped", "moved", "repeated", "gap",
        "head", "head_count", "head_missing", "head_changed",
    ]  # fmt: skip
    found: str = ""  # what the sentence ends with

    @property
    def problem(self) -> str:
        return _FAULTS[self.kind] + self.found

    @property
    def line(self) -> str:
        return f"{self.where}: {self.problem}"


_FAULTS = {
    "unreadable": "cannot be read",
    "changed": "was changed after it was written",
    "dropped": "the line before this one was removed or replaced",
    "moved": "is not where it was written",
    "repeated": "occurs twice",
    "gap": "says that lines at the end of the log were gone when the hub started",
    "head": f"the last line that {HEAD_FILE} names is gone: it",
    "head_count": "",
    "head_missing": "is missing",
    "head_changed": "",
}


@dataclass
class LogChain:
    """The log as a chain of lines."""

    faults: list[LogFault] = field(default_factory=list)
    before: int = 0  # lines from before lines were chained
    count: int = 0  # chained lines
    last: str = FIRST  # hash of the last
    torn: str = ""  # where the last line was cut off
    refused: list[str] = field(default_factory=list)  # lines that were not given to ``take``
    head: LogHead | None = None
    signed: Signed = field(default_factory=lambda: Signed("unsigned"))
    """Who signed the head, and with it every line before."""


def read_chain(
    folder: Path, take: Callable[[str, AnyRecord], object] = lambda *_: None
) -> LogChain:
    """Follow the log from line to line; returns every place where it is not as it was written.

    Args:
        take: is given every line that is as it was written, and where it is.
    """
    reader = _ChainReader()
    chain = reader.chain
    for path in log_files(folder):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path.name}:{number}"
                if not line.endswith(b"\n"):  # a crash, unless the head says that it was whole
                    chain.torn = where
                    break
                if record := reader.read(where, line):
                    take(where, record)
    chain.faults += _misplaced(reader.breaks, reader.hashes)
    _check_head(folder, chain, reader.hashes | reader.changed)
    return chain


class _ChainReader:
    """Follows the chain line by line, and notes where a line does not fit."""

    def __init__(self) -> None:
        self.chain = LogChain()
        self.breaks: list[_Break] = []
        self.hashes: set[str] = set()  # of lines that are as they were written
        self.changed: set[str] = set()  # of changed lines: stated and computed
        self._before = hashlib.sha256()  # of the lines from before lines were chained
        self._unknown = False  # the line before cannot be read: what follows on it is not known
        self._computed = ""  # hash of the line before, where it is not the one that it states

    def read(self, where: str, line: bytes) -> AnyRecord | None:
        """The record of a line; None unless it is as it was written."""
        chain = self.chain
        try:
            record = RECORD_ADAPTER.validate_json(line)
        except ValidationError:
            self._unknown = True
            self._refuse(where, "unreadable", counts=bool(chain.count))
            return None
        if record.hash is None and record.prev is None and not chain.count:
            chain.before += 1
            self._before.update(line)
            chain.last = self._before.hexdigest()
        elif record.hash is None:
            self._refuse(where, "changed")
            return None
        elif (computed := _hash_of(line, record.hash)) != record.hash:
            chain.last, self._computed = record.hash, computed
            self.changed |= {record.hash, computed}
            self._refuse(where, "changed")
            return None
        elif record.hash in self.hashes:  # the next line follows on the one before
            self._refuse(where, "repeated")
            return None
        else:
            self._follow(where, record.hash, str(record.prev))
        if isinstance(record, GapRecord):
            chain.faults.append(LogFault(where, "gap"))
        return record

    def _refuse(
        self, where: str, kind: Literal["unreadable", "changed", "repeated"], *, counts: bool = True
    ) -> None:
        self.chain.faults.append(LogFault(where, kind))
        self.chain.refused.append(where)
        self.chain.count += counts

    def _follow(self, where: str, hash_: str, prev: str) -> None:
        """Go on to a line that is as it was written, wherever it was written."""
        if self.breaks:
            self.breaks[-1].followed |= prev == self.breaks[-1].hash
        if prev not in (self.chain.last, self._computed) and not self._unknown:
            self.breaks.append(_Break(where, hash_, prev, self.chain.last))
        self._unknown, self._computed = False, ""
        self.chain.last = hash_
        self.chain.count += 1
        self.hashes.add(hash_)


@dataclass
class _Break:
    """A line that does not follow on the one before it."""

    where: str
    hash: str
    prev: str  # hash of the line that it follows on
    before: str  # hash of the line before it
    followed: bool = False  # whether the next line follows on it


def _misplaced(breaks: list[_Break], known: Collection[str]) -> Iterator[LogFault]:
    """Which lines were moved, and where lines are gone.

    A line that fits neither the line before it nor the one after it was moved. So its neighbours,
    here and where it came from, are where they were written.
    """
    moved = {each.hash for each in breaks if each.prev in known and not each.followed}
    for each in breaks:
        if each.prev not in known:
            yield LogFault(each.where, "dropped")
        elif each.hash in moved or not moved & {each.prev, each.before}:
            yield LogFault(each.where, "moved")


def _check_head(folder: Path, chain: LogChain, known: Collection[str]) -> None:
    """The line that the head names must be there; a crash may have left lines after it."""
    try:
        found = unsealed((folder / HEAD_FILE).read_bytes(), LogHead.model_fields.keys())
        head = chain.head = LogHead.model_validate(found.value)
        chain.signed = found.signed("log")
        if found.digest is None:
            raise ValueError("has no seal")
    except FileNotFoundError:
        if chain.count:
            chain.faults.append(LogFault(HEAD_FILE, "head_missing"))
        return
    except ValidationError as error:
        fault = error.errors()[0]
        wrong = f"{fault['loc'][0]} {fault_text(fault)}"
        chain.faults.append(LogFault(HEAD_FILE, "head_changed", wrong))
        return
    except (OSError, ValueError) as error:
        chain.faults.append(LogFault(HEAD_FILE, "head_changed", str(error)))
        return
    unreadable = any(fault.kind == "unreadable" for fault in chain.faults)
    if chain.signed.state == "wrong":
        chain.faults.append(LogFault(HEAD_FILE, "head_changed", chain.signed.line))
    lines = f"{head.count} line{'' if head.count == 1 else 's'}"
    counts = f"counts {lines}, the log has {chain.count}"
    if head.count and head.hash not in known and not (unreadable and chain.count >= head.count):
        newest = next(reversed(log_files(folder)), folder / HEAD_FILE)
        chain.faults.append(LogFault(newest.name, "head", f" {counts}"))
    elif chain.count < head.count:
        chain.faults.append(LogFault(HEAD_FILE, "head_count", counts))


def read_log(folder: Path) -> LogContents:
    """The whole log; a line that is not as it was written is named and left out."""
    return read_log_and_chain(folder)[0]


def read_log_and_chain(folder: Path) -> tuple[LogContents, LogChain]:
    """What the log says, and the chain of its lines."""
    log = LogContents()

    def take(where: str, record: AnyRecord) -> None:
        try:
            log.add(record)
        except ValidationError:  # a decision on something else
            log.unreadable.append(where)

    chain = read_chain(folder, take)
    lost = [fault.where for fault in chain.faults if fault.kind in ("unreadable", "changed")]
    log.unreadable += lost
    return log, chain


def tally(log: LogContents) -> Tally:
    """Alarms and answers, by model, by source and by kind of alarm."""
    rows = list(_by_model(log))
    return Tally(
        decisions=log.decisions,
        alarms=len(log.alarms),
        answered=sum(row.answered for row in rows),
        true=sum(row.true for row in rows),
        torn=log.torn,
        unreadable=log.unreadable,
        by_model=rows,
    )


def _by_model(log: LogContents) -> Iterator[AnswerCounts]:
    groups = {
        name: (alarm.model, alarm.source, alarm.silence) for name, alarm in log.alarms.items()
    }
    alarms = Counter(groups.values())
    answered = Counter(groups[name] for name in log.answers if name in groups)
    true = Counter(groups[n] for n, answer in log.answers.items() if n in groups and answer.verdict)
    for group in sorted(alarms):
        model, source, silence = group
        yield AnswerCounts(
            model=model, source=source, silence=silence,
            alarms=alarms[group], answered=answered[group], true=true[group],
        )  # fmt: skip
