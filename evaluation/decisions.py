"""What scorers decided on machines and what operators answered: reading the log, and counting it.

The hub writes the log, ``artifacts/decisions/<UTC day>.jsonl``. What is in it was seen by people
after training, so no dataset and no test is ever made from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VERSION: Literal[1] = 1
SUFFIX = ".jsonl"

Text = Annotated[str, Field(min_length=1, max_length=200)]


class Record(BaseModel):
    """What every line says. ``prev`` and ``hash`` are for chaining lines; no line has them yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = VERSION
    kind: str
    at: float  # Unix seconds at which it was written
    prev: str | None = None
    hash: str | None = None


class DecisionRecord(Record):
    """An alarm was raised or cleared, or a source or host went silent or came back."""

    kind: Literal["decision"] = "decision"
    event: dict[str, Any]  # the ``live_detection`` as the hub sent it
    input_digest: str | None = None  # of the window's values
    contract: str | None = None  # hash of the bundle's contract


class Answer(BaseModel):
    """What an operator says of an alarm."""

    model_config = ConfigDict(extra="forbid")

    alarm_id: Text
    host: Text
    verdict: bool
    note: Annotated[str, Field(max_length=2000)] = ""


class AnswerRecord(Answer, Record):
    """An operator says whether an alarm was right. A later answer replaces an earlier one."""

    kind: Literal["answer"] = "answer"


class TornRecord(Record):
    """A line was cut off by a crash; what was left of it is kept in a file beside the log."""

    kind: Literal["torn"] = "torn"
    file: str
    bytes: int


AnyRecord = Annotated[DecisionRecord | AnswerRecord | TornRecord, Field(discriminator="kind")]
RECORD: TypeAdapter[DecisionRecord | AnswerRecord | TornRecord] = TypeAdapter(AnyRecord)


class _Decided(BaseModel):
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


@dataclass
class Log:
    """The log as read: its alarms by id, the last answer to each, and what could not be read."""

    alarms: dict[str, Alarm] = field(default_factory=dict)
    answers: dict[str, AnswerRecord] = field(default_factory=dict)
    decisions: int = 0
    torn: int = 0
    unreadable: list[str] = field(default_factory=list)  # file and line

    def add(self, record: DecisionRecord | AnswerRecord | TornRecord) -> None:
        if isinstance(record, AnswerRecord):
            self.answers[record.alarm_id] = record
        elif isinstance(record, TornRecord):
            self.torn += 1
        else:
            self.decisions += 1
            said = _Decided.model_validate(record.event)
            if said.alarm_id and said.alarm_id not in self.alarms:
                alarm = Alarm(said.host, said.model, said.source, said.phase is None)
                self.alarms[said.alarm_id] = alarm


class Answered(BaseModel):
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
    by_model: list[Answered]

    @property
    def precision(self) -> float | None:
        """Of live machines' alarms, the share of the answered ones that were true."""
        live = [row for row in self.by_model if row.source == "live"]
        answered = sum(row.answered for row in live)
        return sum(row.true for row in live) / answered if answered else None


def log_files(folder: Path) -> list[Path]:
    """The files of the log, oldest first."""
    return sorted(folder.glob(f"????-??-??{SUFFIX}"))


def read_log(folder: Path) -> Log:
    """The whole log; a line that cannot be read is named and left out."""
    log = Log()
    for path in log_files(folder):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    log.add(RECORD.validate_json(line))
                except ValidationError:
                    log.unreadable.append(f"{path.name}:{number}")
    return log


def tally(log: Log) -> Tally:
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


def _by_model(log: Log) -> Iterator[Answered]:
    groups = {
        name: (alarm.model, alarm.source, alarm.silence) for name, alarm in log.alarms.items()
    }
    alarms = Counter(groups.values())
    answered = Counter(groups[name] for name in log.answers if name in groups)
    true = Counter(groups[n] for n, answer in log.answers.items() if n in groups and answer.verdict)
    for group in sorted(alarms):
        model, source, silence = group
        yield Answered(
            model=model, source=source, silence=silence,
            alarms=alarms[group], answered=answered[group], true=true[group],
        )  # fmt: skip
