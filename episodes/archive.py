"""Safe reading of an episode's ``.tar.zst``: stream it, keep allow-listed members, count bytes.

Nothing is extracted to disk. What the members mean is not decided here.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import zstandard

from episodes.format import ARCHIVE_SUFFIX, READ_FILES, is_episode_id

MAX_ARCHIVE_BYTES = 256 * 2**20
MAX_MEMBER_BYTES = 256 * 2**20
MAX_UNPACKED_BYTES = 1024 * 2**20
MAX_MEMBERS = 1_000


class ArchiveError(Exception):
    """An archive that cannot be read; ``code`` is a reason of ``validation``."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code = code
        self.detail = detail


class _StrictTarInfo(tarfile.TarInfo):
    """Only a block of zeros ends an archive; tarfile takes any damaged header for the end."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(str(error)) from error


def _is_whole(packed: bytes) -> bool:
    """Whether the last zstd frame is complete, checksum included (RFC 8878's block headers).

    The streaming reader takes the end of its input for the end of the data, so it sees no cut.
    """
    at = 0
    while at < len(packed):
        # a skippable frame: magic number, size, content
        if 0x184D2A50 <= int.from_bytes(packed[at : at + 4], "little") <= 0x184D2A5F:
            at += 8 + int.from_bytes(packed[at + 4 : at + 8], "little")
            continue
        header = packed[at : at + 18]
        has_checksum = zstandard.get_frame_parameters(header).has_checksum
        at += zstandard.frame_header_size(header)
        last = False
        while not last:
            if at + 3 > len(packed):
                return False
            block = int.from_bytes(packed[at : at + 3], "little")
            last = bool(block & 1)
            at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        at += 4 * has_checksum
    return at == len(packed) and at > 0


class _CountingReader(io.RawIOBase):
    """Counts what comes out of the decompressor and stops it at a limit.

    The library's own ``max_output_size`` does not stop a decompression bomb.
    """

    def __init__(self, stream: zstandard.ZstdDecompressionReader, limit: int):
        self._stream = stream
        self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise ArchiveError(
                "unsafe_archive",
                f"unpacked size must be at most {MAX_UNPACKED_BYTES:,} bytes, got more",
            )
        return count


def read_packed(path: Path) -> bytes:
    """The bytes of an archive, read once: the bytes hashed are the bytes unpacked.

    Raises:
        OSError: the file cannot be read.
        ArchiveError: it is a symlink, a folder or a device, or larger than any episode.
    """
    if path.is_symlink():
        raise ArchiveError("unsafe_archive", f"{path.name} is a symlink; symlinks are not followed")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = os.strerror(errno.EISDIR) if stat.S_ISDIR(status.st_mode) else "Not a regular file"
        raise ArchiveError("io_error", f"{path.name}: {kind}")
    size = status.st_size
    if size > MAX_ARCHIVE_BYTES:
        raise ArchiveError(
            "unsafe_archive",
            f"{path.name} must be at most {MAX_ARCHIVE_BYTES:,} bytes, got {size:,}",
        )
    return path.read_bytes()


def read_members(packed: bytes, episode_id: str) -> dict[str, bytes]:
    """Content of the allow-listed members of a ``.tar.zst`` held in memory.

    Raises:
        ArchiveError: it is broken, or has a member that no episode may have.
        MemoryError: there is too little to unpack it.
    """
    members: dict[str, bytes] = {}
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
    try:
        with (
            decompressor.stream_reader(packed, read_across_frames=True) as stream,
            io.BufferedReader(_CountingReader(stream, MAX_UNPACKED_BYTES), 2**20) as plain,
            tarfile.open(fileobj=plain, mode="r|", bufsize=2**18, tarinfo=_StrictTarInfo) as tar,
        ):
            named = False
            for count, member in enumerate(tar):
                if count >= MAX_MEMBERS:
                    raise ArchiveError(
                        "unsafe_archive", f"must have at most {MAX_MEMBERS} members, got more"
                    )
                folder = member.name.removeprefix("./").partition("/")[0]
                named = named or folder == episode_id
                if not named and is_episode_id(folder):
                    raise ArchiveError(
                        "renamed_archive",
                        f"the file is named {episode_id}, its content is episode {folder}; rename "
                        f"it to {folder}{ARCHIVE_SUFFIX}",
                    )
                name = _checked_name(member, episode_id)
                if name not in READ_FILES:
                    continue
                if name in members:
                    raise ArchiveError("unsafe_archive", f"{name} appears twice")
                if member.size > MAX_MEMBER_BYTES:
                    raise ArchiveError(
                        "unsafe_archive",
                        f"{name} must be at most {MAX_MEMBER_BYTES:,} bytes, got {member.size:,}",
                    )
                content = tar.extractfile(member)
                assert content is not None  # a regular file, by _checked_name
                members[name] = content.read()
            while plain.read(2**20):  # to the end, to see damage after the last member
                pass
        if not _is_whole(packed):
            raise EOFError("the last frame is cut off")
    except (zstandard.ZstdError, tarfile.TarError, EOFError, RecursionError) as error:
        if "not enough memory" in str(error):
            raise MemoryError(str(error)) from error
        raise ArchiveError("broken_archive", f"cannot be read as .tar.zst: {error}") from error
    return members


def _checked_name(member: tarfile.TarInfo, episode_id: str) -> str | None:
    """File name of a regular member of the episode's folder; None for the folder itself."""
    parts = member.name.rstrip("/").split("/")
    if member.isdir() and parts in ([episode_id], ["."], [".", episode_id]):
        return None
    if not member.isreg() or member.issparse():
        raise ArchiveError(
            "unsafe_archive",
            f"members must be regular files or the episode's folder, got {member.name!r}",
        )
    if parts[0] == ".":
        parts = parts[1:]
    if len(parts) != 2 or parts[0] != episode_id or parts[1] in ("", ".", ".."):
        raise ArchiveError(
            "unsafe_archive", f"members must be in the folder {episode_id}/, got {member.name!r}"
        )
    return parts[1]
