"""Progress as people see it: how much, how fast, how long still; on a terminal and in a file."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest

from config.progress import Meter, counted, duration, rate
from pipelines.cli.progress import LINE_EVERY_S, ProgressHandler


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(handler: ProgressHandler, line: str, **extra: Any) -> None:
    level = extra.pop("level", logging.INFO)
    handler.handle(logging.makeLogRecord({"msg": line, "levelno": level, **extra}))


def test_a_meter_says_how_many_how_fast_and_how_long_still() -> None:
    clock, said = Clock(), list[tuple[str, bool]]()
    meter = Meter("ingest", lambda line, last: said.append((line, last)), 2.0, clock)
    meter(0, 100, "first")
    clock.now += 1
    meter(10, 100)  # too early
    clock.now += 1
    meter(20, 100, "third")
    clock.now += 0.5
    meter(100, 100, "all")  # the last, however early
    assert said == [
        ("ingest: 0 of 100, first", False),
        ("ingest: 20 of 100, 10/s, 8 s left, third", False),
        ("ingest: 100 of 100, 40/s, all", True),
    ]


def test_counted_items_begin_at_none_and_end_at_all() -> None:
    clock, said = Clock(), list[str]()
    meter = Meter("files", lambda line, last: said.append(line), 0.0, clock)  # noqa: ARG005
    for _ in counted("ab", meter):
        clock.now += 60
    assert said == ["files: 0 of 2", "files: 1 of 2, 1/min, 60 s left", "files: 2 of 2, 1/min"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5939, "99 min"), (6000, "1 h 40 min"),
     (360_000, "100 h 00 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("per_s", "text"),
    [(12_345.6, "12,346/s"), (3.456, "3.46/s"), (0.5, "30/min"), (0.001, "3.6/h")],
)
def test_rates(per_s: float, text: str) -> None:
    assert rate(per_s) == text


def test_a_file_gets_the_first_line_one_every_so_often_and_the_last() -> None:
    clock, file = Clock(), io.StringIO()
    handler = ProgressHandler(file, clock)
    for second in range(95):
        told(handler, f"train: {second} of 95", progress=True, last=False)
        clock.now += 1
    told(handler, "train: 95 of 95", progress=True, last=True)
    told(handler, "done")
    assert file.getvalue().split("\n") == [
        "train: 0 of 95", "train: 30 of 95", "train: 60 of 95", "train: 90 of 95",
        "train: 95 of 95", "done", "",
    ]  # fmt: skip


def test_what_is_short_says_nothing_in_a_file_where_it_is_the_answer_that_counts() -> None:
    clock, file = Clock(), io.StringIO()
    handler = ProgressHandler(file, clock, only_if_long=True)
    for done in (0, 1, 2):
        told(handler, f"validating: {done} of 2", progress=True, last=done == 2)
        clock.now += 10
    assert file.getvalue() == ""
    told(handler, "validating: 3 of 4", progress=True, last=False)
    assert file.getvalue() == "validating: 3 of 4\n"


def test_many_short_tasks_do_not_fill_a_file() -> None:
    clock, file = Clock(), io.StringIO()
    handler = ProgressHandler(file, clock)
    for task in range(200):
        for done in range(3):
            told(handler, f"task {task}: {done} of 2", progress=True, last=done == 2)
            clock.now += 0.25
    assert len(file.getvalue().splitlines()) <= 2 * (1 + 150 / LINE_EVERY_S)


def test_after_a_long_silence_what_is_under_way_is_said_again() -> None:
    clock, file = Clock(), io.StringIO()
    handler = ProgressHandler(file, clock)
    handler.beat()  # nothing is under way
    told(handler, "gbt: 1 of 9", progress=True, last=False)
    for _ in range(70):
        clock.now += 1
        handler.beat()
    told(handler, "gbt: 9 of 9", progress=True, last=True)
    clock.now += 100
    handler.beat()
    assert file.getvalue().splitlines() == [
        "gbt: 1 of 9", "gbt: 1 of 9; for 30 s now", "gbt: 1 of 9; for 60 s now", "gbt: 9 of 9",
    ]  # fmt: skip


def test_what_ended_early_is_under_way_no_more() -> None:
    clock, file = Clock(), io.StringIO()
    handler = ProgressHandler(file, clock)
    told(handler, "net: 7 of 40", progress=True, last=False)
    told(handler, "net: done (3 s)")
    clock.now += 100
    handler.beat()
    assert file.getvalue().splitlines() == ["net: 7 of 40", "net: done (3 s)"]


def test_a_terminal_rewrites_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    handler = ProgressHandler(terminal, Clock())
    told(handler, "train: 1 of 3", progress=True, last=False)
    told(handler, "train: 2 of 3, with much more to say", progress=True, last=False)
    told(handler, "a note")
    told(handler, "train: 3 of 3", progress=True, last=True)
    told(handler, "done")
    clear = "\r\x1b[K"
    assert terminal.getvalue() == (
        f"train: 1 of 3{clear}train: 2 of 3, with{clear}a note\ntrain: 3 of 3\ndone\n"
    )


def test_equal_warnings_are_shown_once_and_other_lines_always() -> None:
    file = io.StringIO()
    handler = ProgressHandler(file, Clock())
    for _ in range(2):
        told(handler, "careful", level=logging.WARNING)
        told(handler, "done")
    assert file.getvalue().splitlines() == ["careful", "done", "done"]
