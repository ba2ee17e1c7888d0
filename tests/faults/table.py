"""The faults that there are, what one try of a fault came to, and the table of all."""

from __future__ import annotations

import fcntl
import importlib
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import faults

Verdict = Literal["noticed", "harmless", "lost", "wrong", "traceback", "hang"]
"""What a try came to.

noticed: it was refused or repaired, and named. harmless: the result is that of no fault. lost:
something that was finished is gone. wrong: another result, without a word. traceback: Python's, or
a crash by signal. hang: the time limit passed.
"""
BAD: tuple[Verdict, ...] = ("lost", "wrong", "traceback", "hang")


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True)
class Ran:
    """A command that ended, or was ended at its limit."""

    code: int
    out: str
    err: str
    hung: bool

    @property
    def broken(self) -> Outcome | None:
        """What is wrong whatever was done: a hang, a crash or a stack trace."""
        if self.hung:
            return Outcome("hang", self.err[-300:])
        if self.code < 0 and -self.code not in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            return Outcome("traceback", f"signal {-self.code}: {self.err[-300:]}")
        if "Traceback (most recent call last)" in self.err + self.out:
            return Outcome("traceback", self.err[-1500:])
        return None


@dataclass
class Bench:
    """Where one try happens: folders made once (``base``), one of its own, and its randomness."""

    base: Path
    folder: Path
    random: random.Random
    number: int = 0  # of the try

    def choice_in_turn(self, options: Sequence[Any]) -> Any:
        """One of these by the number of the try, so that each has its turn."""
        return options[self.number % len(options)]

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder that is made once for all tries; never change it."""
        path = self.base / name
        self.base.mkdir(exist_ok=True)
        with path.with_name(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the suite has several workers
            if not path.exists():
                unfinished = path.with_name(f"{name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(path)
        return path

    def copy(self, made: Path) -> Path:
        """A copy of a folder for this try alone."""
        return Path(shutil.copytree(made, self.folder / made.name, dirs_exist_ok=True))

    def run(
        self, *command: str | Path, limit_s: float = 60.0, env: dict[str, str] | None = None
    ) -> Ran:
        """Run ``python -m`` with these arguments, and wait for it at most ``limit_s``."""
        arguments = [sys.executable, "-m", *map(str, command)]
        try:
            done = subprocess.run(
                arguments, capture_output=True, text=True, errors="replace",
                timeout=limit_s, env=env, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as expired:
            err = expired.stderr or b""
            return Ran(-signal.SIGKILL, "", err.decode(errors="replace"), hung=True)
        return Ran(done.returncode, done.stdout, done.stderr, hung=False)


@dataclass(frozen=True)
class Fault:
    name: str
    tries: int
    quick: int
    do: Callable[[Bench], Outcome]


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, *, tries: int, quick: int = 1
) -> Callable[[Callable[[Bench], Outcome]], Callable[[Bench], Outcome]]:
    """Declare a fault: done ``tries`` times by ``make faults``, ``quick`` times by the suite."""

    def declare(do: Callable[[Bench], Outcome]) -> Callable[[Bench], Outcome]:
        assert name not in FAULTS, name
        FAULTS[name] = Fault(name, tries, quick, do)
        return do

    return declare


@dataclass
class Row:
    """All tries of one fault."""

    fault: str
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    bad: dict[int, Outcome] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def tries(self) -> int:
        return sum(self.verdicts.values())


def attempt(fault: Fault, number: int, base: Path, folder: Path) -> Outcome:
    """Do a fault once, in an empty folder that is removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bench = Bench(base, folder, random.Random(f"{fault.name} {number}"), number)
    try:
        return fault.do(bench)
    except Exception:  # the fault's own code, or the product's in this process
        return Outcome("traceback", traceback.format_exc()[-1500:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def declared() -> None:
    """Import every module of this package, so that its faults are known."""
    for module in pkgutil.iter_modules(faults.__path__):
        if module.name not in ("__main__", "apart", "table"):
            importlib.import_module(f"faults.{module.name}")


def tried(name: str, number: int, base: Path) -> tuple[Outcome, float]:
    """One try, in a worker; what it came to, and the seconds that it took."""
    declared()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="try-", dir=base.parent) as folder:
        outcome = attempt(FAULTS[name], number, base, Path(folder, "try"))
    return outcome, time.monotonic() - began


HEADINGS = ("fault", "tries", "noticed", "harmless", "lost", "wrong", "tracebacks", "hangs")


def as_markdown(rows: list[Row]) -> str:
    """The table, a row per fault and one for all of them."""
    total = Row("all", sum((row.verdicts for row in rows), Counter()))
    lines: list[tuple[str, ...]] = [HEADINGS, ("---",) + ("---:",) * 7]
    for row in [*rows, total]:
        order: tuple[Verdict, ...] = ("noticed", "harmless", *BAD)
        lines.append((row.fault, str(row.tries), *(str(row.verdicts[key]) for key in order)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
