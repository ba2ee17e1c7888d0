"""Writing the log of decisions: every change of an alarm, and what operators answered.

Unless every window is asked for, only changes are written: between two the decision is the same.
The log only grows, each line chained to the one before; lines are on the disk before anyone is told
that they are. Reading it is ``evaluation.decisions``'.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from config.disk import lock, sync, sync_folder
from config.errors import PhasewatchError
from config.signing import SigningError, sealed
from evaluation.decisions import (
    HEAD_FILE,
    SUFFIX,
    AnswerRecord,
    AnyRecord,
    DecisionRecord,
    GapRecord,
    LogHead,
    TornRecord,
    chain_record,
    log_files,
    read_log_and_chain,
    window_key,
)
from hub.events import LiveDetection, now

MAX_FILE_BYTES = 64 << 20
"""Of one file of a day; the next line begins another."""
PENDING = 10_000
"""Records that wait while the disk does not take them."""

log = logging.getLogger("phasewatch")


class LogError(PhasewatchError):
    """The log cannot be written; the message says why and what to do."""


class DecisionLog:
    """The log of one artifacts folder, open for writing.

    Args:
        windows: write every window, not only what changes something.

    Raises:
        LogError: the folder cannot be written, or another hub writes there.
    """

    def __init__(self, folder: Path, *, windows: bool = False):
        self.folder, self.windows = folder, windows
        self._writer = ThreadPoolExecutor(1)  # one batch after the other; close() waits for it
        self._lock = threading.Lock()  # of ``_pending``
        self._pending: list[AnyRecord] = []
        # host and source of events -> its silent sources; hosts without: absent
        self._silent: dict[tuple[str, str], list[str]] = {}
        self.lost = 0
        """Records that were dropped because the disk took none for too long."""
        self.problem: str | None = None
        """Why the last write failed."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._owner = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                lock(self._owner, wait=False)
            except BlockingIOError:
                os.close(self._owner)
                raise LogError(
                    f"{folder}: another hub is writing this log; stop it, or name another folder "
                    "with --artifacts"
                ) from None
            self._mend()
        except OSError as error:
            raise LogError(f"{folder}: the log cannot be written: {error.strerror}") from error

    def close(self) -> None:
        self._writer.shutdown()
        os.close(self._owner)  # frees the lock

    def _mend(self) -> None:
        """Take up the chain where it ends; what a crash left of the last line is set aside.

        Both are recorded in the log, as is the loss of lines that were on disk.
        """
        found: list[AnyRecord] = []
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
                sync(file.fileno())
            os.truncate(path, whole)
            found.append(TornRecord(at=now(), file=aside.name, bytes=len(torn)))
            log.warning(
                "%s: the last line was cut off by a crash; its %d bytes are in %s",
                path, len(torn), aside.name,
            )  # fmt: skip
        self.content, chain = read_log_and_chain(self.folder)
        for fault in chain.faults[:5]:
            log.warning("%s/%s", self.folder, fault.line)
        self._last, self._count = chain.last, chain.count
        if chain.head and any(fault.kind in ("head", "head_changed") for fault in chain.faults):
            found.append(GapRecord(at=now(), count=chain.head.count, last=chain.head.hash))
        for record in found:
            self.content.add(record)
        if found:
            self._write(found)
        else:
            self._write_head()

    def note(self, event: LiveDetection) -> None:
        """Take down a detection if it changes something or is of an alarm that the log has not.

        A scorer that had no answer sends again; what is written already is not taken down again.
        """
        before = self._silent.pop((event.host, event.source), [])
        if event.silent:
            self._silent[event.host, event.source] = event.silent
        changes = (
            event.alarm in ("raised", "cleared")
            or event.silent != before
            or (event.alarm_id is not None and event.alarm_id not in self.content.alarms)
        )
        if (changes or self.windows) and window_key(vars(event)) not in self.content.recent:
            self._take(DecisionRecord(at=now(), event=event.model_dump(mode="json")))

    def _take(self, record: AnyRecord) -> None:
        self.content.add(record)
        with self._lock:
            self._pending.append(record)
            if len(self._pending) > PENDING:
                del self._pending[0]
                self.lost += 1

    async def answer(self, alarm_id: str, host: str, verdict: bool, note: str) -> AnswerRecord:
        """Write an operator's answer.

        Raises:
            LogError: it is not on the disk; it will be if the disk takes it later.
        """
        record = AnswerRecord(at=now(), alarm_id=alarm_id, host=host, verdict=verdict, note=note)
        self._take(record)
        await self.flush()
        if self.problem:
            raise LogError(self.problem)
        return record

    async def flush(self) -> None:
        """Write all that waits, as one batch; what cannot be written waits on.

        If the caller is cancelled, a write that has begun still ends, and before any other begins.
        """
        await asyncio.wrap_future(self._writer.submit(self._write_pending))

    def _write_pending(self) -> None:
        with self._lock:
            batch = list(self._pending)
        if not batch:
            return
        try:
            self._write(batch)
        except OSError as error:
            problem = f"{self.folder}: the log cannot be written: {error.strerror}"
            if problem != self.problem:
                log.warning("%s; %d records wait", problem, len(self._pending))
            self.problem = problem
            return
        self.problem = None
        written = set(map(id, batch))
        with self._lock:
            self._pending = [record for record in self._pending if id(record) not in written]

    def _write(self, records: list[AnyRecord]) -> None:
        """Append lines to the newest file, all or none, and then say which is the last."""
        last, lines = self._last, list[bytes]()
        for record in records:
            line, last = chain_record(record, last)
            lines.append(line)
        content, path = memoryview(b"".join(lines)), self._file()
        new = not path.exists()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            whole = os.lseek(handle, 0, os.SEEK_END)
            try:
                while content:
                    content = content[os.write(handle, content) :]
                sync(handle)
            except OSError:
                os.ftruncate(handle, whole)  # a full disk must not leave half a line
                raise
        finally:
            os.close(handle)
        self._last, self._count = last, self._count + len(lines)
        if new:
            sync_folder(self.folder)
        try:
            self._write_head()
        except (OSError, SigningError) as error:  # the lines are written, and must not be again
            log.warning(
                "%s: not written: %s; it will be written with the next line", HEAD_FILE, error
            )

    def _file(self) -> Path:
        """The file to append to: of today, but never one before the newest, nor one too large."""
        today = time.strftime("%Y-%m-%d", time.gmtime())
        newest = next(reversed(log_files(self.folder)), None)
        if newest is None or newest.name[: len(today)] < today:
            return self.folder / f"{today}{SUFFIX}"
        if newest.stat().st_size < MAX_FILE_BYTES:
            return newest
        day, _, number = newest.name.removesuffix(SUFFIX).partition(".")
        return self.folder / f"{day}.{int(number or 0) + 1:04}{SUFFIX}"

    def _write_head(self) -> None:
        """Say which line is the last, and sign it if there is a key; readers see old or new."""
        path = self.folder / HEAD_FILE
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            head = LogHead(count=self._count, hash=self._last)
            file.write(sealed(head.model_dump(), "log"))
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
