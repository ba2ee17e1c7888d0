"""Files written whole or not at all, and hashes of their content.

The meaning of files is not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from config.disk import ignore_unsupported, sync, sync_folder


def fingerprint(value: object) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; symlinks are not followed.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no such file.
    """
    # without O_NONBLOCK, opening a pipe would wait for its writer
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise ValueError("not a regular file")
    with os.fdopen(handle, "rb") as file:
        content = file.read(min(status.st_size, limit) + 1)
    if len(content) > limit:
        raise ValueError(f"must be at most {limit:,} bytes, got more")
    return content


_may_write: ContextVar[Callable[[], None]] = ContextVar("may_write", default=lambda: None)


@contextmanager
def writes_gated(ask: Callable[[], None]) -> Iterator[None]:
    """Call ``ask`` before every write in this context; an exception of it stops the write.

    For work that can be told to stop and must write nothing after that.
    """
    before = _may_write.get()
    _may_write.set(ask)
    try:
        yield
    finally:
        _may_write.set(before)


def check_may_write() -> None:
    """Raise if ``writes_gated`` says that the caller may no longer write."""
    _may_write.get()()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the whole old content or the whole new one.

    Every artifact and checkpoint is written by this, so ``writes_gated`` is asked here.
    """
    check_may_write()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".tmp-{os.getpid()}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
        with ignore_unsupported():
            Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
