"""Writing the log of decisions: every change of an alarm, and what operators answered.

Not every window is written: between two changes the decision is the same. The log only grows; lines
are on the disk before anyone is told that they are. Reading it is ``evaluation.decisions``'.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from pathlib import Path

from evaluation.decisions import (
    SUFFIX,
    AnswerRecord,
    DecisionRecord,
    TornRecord,
    log_files,
    read_log,
)
from hub.events import LiveDetection

Record = DecisionRecord | AnswerRecord | TornRecord

PENDING = 10_000
"""Records that wait while the disk does not take them."""

log = logging.getLogger("phasewatch")


class LogError(Exception):
    """The log cannot be written; the message says why and what to do."""


class DecisionLog:
    """The log of one artifacts folder, open for writing.

    Raises:
        LogError: the folder cannot be written, or another hub writes there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = asyncio.Lock()
        self._pending: list[Record] = []
        self._silent: dict[str, list[str]] = {}  # host -> its silent sources; hosts without: absent
        self.lost = 0
        """Records that were dropped because the disk took none for too long."""
        self.problem: str | None = None
        """Why the last write failed."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._owner = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._owner)
                raise LogError(
                    f"{folder}: another hub writes this log; stop it, or name another folder with "
                    "--artifacts"
                ) from None
            self._mend()
            self.content = read_log(folder)
        except OSError as error:
            raise LogError(f"{folder}: the log cannot be written: {error.strerror}") from error
        for line in self.content.unreadable[:5]:
            log.warning("%s: this line of the log cannot be read and is not counted", line)

    def close(self) -> None:
        os.close(self._owner)  # frees the lock

    def _mend(self) -> None:
        """Set aside what a crash left of the last line, and say so in the log."""
        for path in log_files(self.folder)[-1:]:
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole == len(content):
                continue
            torn = content[whole:]
            aside = path.with_suffix(".torn")
            with aside.open("ab") as file:
                file.write(torn + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.truncate(path, whole)
            self._write([TornRecord(at=_now(), file=aside.name, bytes=len(torn))])
            log.warning(
                "%s: the last line was cut off by a crash; its %d bytes are in %s",
                path, len(torn), aside.name,
            )  # fmt: skip

    def note(self, event: LiveDetection) -> bool:
        """Take down a detection if it changes something; returns whether ``flush`` is due."""
        before = self._silent.pop(event.host, [])
        if event.silent:
            self._silent[event.host] = event.silent
        if event.alarm not in ("raised", "cleared") and event.silent == before:
            return False
        self._take(DecisionRecord(at=_now(), event=event.model_dump(mode="json")))
        return True

    def _take(self, record: Record) -> None:
        self.content.add(record)
        self._pending.append(record)
        if len(self._pending) > PENDING:
            del self._pending[0]
            self.lost += 1

    async def answer(self, alarm_id: str, host: str, verdict: bool, note: str) -> AnswerRecord:
        """Write an operator's answer.

        Raises:
            LogError: it is not on the disk; it will be if the disk takes it later.
        """
        record = AnswerRecord(at=_now(), alarm_id=alarm_id, host=host, verdict=verdict, note=note)
        self._take(record)
        await self.flush()
        if self.problem:
            raise LogError(self.problem)
        return record

    async def flush(self) -> None:
        """Write all that waits, as one batch; what cannot be written waits on."""
        async with self._lock:
            batch = list(self._pending)
            if not batch:
                return
            try:
                await asyncio.to_thread(self._write, batch)
            except OSError as error:
                problem = f"{self.folder}: the log cannot be written: {error.strerror}"
                if problem != self.problem:
                    log.warning("%s; %d records wait", problem, len(self._pending))
                self.problem = problem
                return
            self.problem = None
            written = set(map(id, batch))
            self._pending = [record for record in self._pending if id(record) not in written]

    def _write(self, records: list[Record]) -> None:
        """Append lines to the file of the day, all or none."""
        path = self.folder / time.strftime(f"%Y-%m-%d{SUFFIX}", time.gmtime())
        lines = [record.model_dump_json(exclude_none=True) + "\n" for record in records]
        content = memoryview("".join(lines).encode())
        new = not path.exists()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            whole = os.lseek(handle, 0, os.SEEK_END)
            try:
                while content:
                    content = content[os.write(handle, content) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, whole)  # a full disk must not leave half a line
                raise
        finally:
            os.close(handle)
        if new:
            _sync_folder(self.folder)


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _now() -> float:
    return round(time.time(), 3)
