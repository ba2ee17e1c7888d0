"""What not every file system offers: fsync, chmod, locks. Nothing of ours is imported here."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NOT_OFFERED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
"""What a file system answers that has no such operation; CIFS, vboxsf and FUSE are examples."""


@contextmanager
def ignore_unsupported() -> Iterator[None]:
    """Do without an operation on files that not every file system offers: fsync, chmod."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


def sync(handle: int) -> None:
    """Have what was written to an open file or folder on the disk, where that is offered."""
    with ignore_unsupported():
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files durable: those of new, renamed and deleted ones."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)


def lock(handle: int, *, wait: bool = True) -> None:
    """Lock an open file or folder against other processes, where that is offered.

    Raises:
        BlockingIOError: another process has the lock, and this one does not ``wait`` for it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {*_NOT_OFFERED, errno.ENOLCK, errno.EBADF}:
            raise


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Held by one process at a time per folder; the system releases it from a killed process.

    Where the file system has no locks, it is held by none. It cannot be taken twice in a process.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle)
        try:
            yield
        finally:
            with suppress(OSError):  # a child that was forked meanwhile has the handle, too
                fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)
