"""Safe reading of an episode's ``.tar.zst``: stream it, keep allow-listed members, count bytes.

Nothing is extracted to disk. What the members mean is not decided here. The limits are such that
any archive is validated within 512 MB and 10 s, whatever is in it; docs/data-format.md lists them.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import zstandard

from config.errors import PhasewatchError
from episodes.format import ARCHIVE_SUFFIX, READ_FILES, is_episode_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_ARCHIVE_BYTES = 64 * 2**20
MAX_READ_BYTES = 64 * 2**20  # of all files that are read; ten times the largest recorded episode
MAX_UNPACKED_BYTES = 1024 * 2**20
MAX_MEMBERS = 1_000
MAX_HEADER_BYTES = 64 * 2**10  # of what an extended header says: a name and a few facts
MAX_WINDOW_BYTES = 128 * 2**20  # more zstd itself takes only when told to
MAX_BLOCKS = 100_000  # of zstd, frames included; a GiB in whole blocks has 8,192
_CHUNK = 2**20


class ArchiveError(PhasewatchError):
    """An archive that cannot be read; ``code`` is a reason of ``validation``."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code = code
        self.detail = detail


def read_packed(path: Path) -> bytes:
    """The bytes of an archive, read once: the bytes hashed are the bytes unpacked.

    Raises:
        OSError: the file cannot be read.
        ArchiveError: it is a symlink, a folder or a device, or larger than any episode.
    """
    _check_regular(path, path.lstat())
    # it may be another by now: O_NONBLOCK does not wait for the writer of a pipe
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        _check_regular(path, status)
        content = _read(file, min(status.st_size, MAX_ARCHIVE_BYTES + 1))
    if len(content) > MAX_ARCHIVE_BYTES:
        raise ArchiveError(
            "unsafe_archive",
            f"{path.name} must be at most {MAX_ARCHIVE_BYTES:,} bytes, got {status.st_size:,}",
        )
    return content


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise ArchiveError(
            "unsafe_archive", f"the archive {path.name} is a symlink; symlinks are not followed"
        )
    if not stat.S_ISREG(status.st_mode):
        kind = os.strerror(errno.EISDIR) if stat.S_ISDIR(status.st_mode) else "Not a regular file"
        raise ArchiveError("io_error", f"{path.name}: {kind}")


def read_members(packed: bytes, episode_id: str) -> dict[str, bytes]:
    """Content of the allow-listed members of a ``.tar.zst`` held in memory.

    Raises:
        ArchiveError: it is broken, or has a member that no episode may have.
        MemoryError: there is too little to unpack it.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        _check_frames(packed)
        with (
            decompressor.stream_reader(packed, read_across_frames=True) as stream,
            io.BufferedReader(_CountingReader(stream, MAX_UNPACKED_BYTES), _CHUNK) as plain,
        ):
            members = _read_tar(plain, episode_id)
            while plain.read(_CHUNK):  # to the end, to see damage after the last member
                pass
    except (zstandard.ZstdError, EOFError) as error:
        if "not enough memory" in str(error):
            raise MemoryError(str(error)) from error
        raise ArchiveError("broken_archive", f"cannot be read as .tar.zst: {error}") from error
    return members


def _read_tar(plain: IO[bytes], episode_id: str) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    left, named = MAX_READ_BYTES, False
    for count, member in enumerate(_members(plain)):
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
            _skip(plain, member.size)
            continue
        if name in members:
            raise ArchiveError("unsafe_archive", f"{name} appears twice")
        left -= member.size
        if left < 0:
            raise ArchiveError(
                "unsafe_archive",
                f"the files of an episode must have at most {MAX_READ_BYTES:,} bytes together, "
                f"got more at {name}",
            )
        members[name] = _read(plain, member.size)
        if len(members[name]) < member.size:
            raise EOFError(f"{name} is cut off")
    return members


def _checked_name(member: _Member, episode_id: str) -> str | None:
    """File name of a regular member of the episode's folder; None for the folder itself."""
    parts = member.name.rstrip("/").split("/")
    if member.kind == _FOLDER and parts in ([episode_id], ["."], [".", episode_id]):
        return None
    if member.kind not in _FILE:
        raise ArchiveError(
            "unsafe_archive",
            f"members must be regular files or the episode's folder, got {_short(member.name)}, "
            f"{_KINDS.get(member.kind, 'something else')}",
        )
    if parts[0] == ".":
        parts = parts[1:]
    if len(parts) != 2 or parts[0] != episode_id or parts[1] in ("", ".", ".."):
        raise ArchiveError(
            "unsafe_archive",
            f"members must be in the folder {episode_id}/, got {_short(member.name)}",
        )
    return parts[1]


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}…")


def _read(file: IO[bytes], size: int) -> bytes:
    """So many bytes, or all there are, without a second copy of them in memory."""
    content = io.BytesIO()
    while chunk := file.read(min(_CHUNK, size - content.tell())):
        content.write(chunk)
    return content.getvalue()


def _exactly(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise EOFError("unexpected end of data")
    return content


def _skip(file: IO[bytes], size: int) -> None:
    while size:
        size -= len(_exactly(file, min(size, _CHUNK)))


# --- zstd


def _check_frames(packed: bytes) -> None:
    """Go through the frames and blocks of a zstd file (RFC 8878) before anything is unpacked.

    The streaming reader takes the end of its input for the end of the data, so it sees no cut. A
    window is memory. Frames and blocks may be empty, so there could be millions.

    Raises:
        ArchiveError: there are too many, or a window is too large.
        EOFError: the last frame is not complete, checksum included.
        zstandard.ZstdError: something else stands where a frame begins.
    """
    at, n_blocks, size = 0, 0, len(packed)
    while at < size:
        n_blocks += 1
        # a skippable frame: magic number, size, content
        if 0x184D2A50 <= int.from_bytes(packed[at : at + 4], "little") <= 0x184D2A5F:
            at += 8 + int.from_bytes(packed[at + 4 : at + 8], "little")
        else:
            header = packed[at : at + 18]
            if not header.startswith(zstandard.FRAME_HEADER[: len(header)]):
                where = f"byte {at + 1:,} is" if at else "it is"
                raise EOFError(f"{where} not zstd data")
            frame = zstandard.get_frame_parameters(header)
            if frame.window_size > MAX_WINDOW_BYTES:
                raise ArchiveError(
                    "unsafe_archive",
                    f"the zstd window size must be at most {MAX_WINDOW_BYTES:,} bytes, "
                    f"got {frame.window_size:,}; compress with a smaller window",
                )
            at += zstandard.frame_header_size(header)
            last = False
            while not last and at + 3 <= size and n_blocks <= MAX_BLOCKS:
                n_blocks += 1
                block = int.from_bytes(packed[at : at + 3], "little")
                last = bool(block & 1)
                at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
            at += 4 * frame.has_checksum if last else size  # beyond the end, if it is cut off
        if n_blocks > MAX_BLOCKS:
            raise ArchiveError(
                "unsafe_archive", f"zstd must have at most {MAX_BLOCKS:,} blocks, got more"
            )
    if not size:
        raise EOFError("it is empty")
    if at != size:
        raise EOFError("the last frame is cut off")


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


# --- tar: regular files and folders in the formats v7, ustar, GNU and pax. Python's tarfile trusts
# sizes, reads headers of any size and number into memory, and has hung on crafted ones.

_BLOCK = 512
_FILE = (b"0", b"\0", b"7")  # types of header
_FOLDER = b"5"
_KINDS = {
    b"1": "a hard link", b"2": "a symlink", b"3": "a device", b"4": "a device", b"5": "a folder",
    b"6": "a pipe",
}  # fmt: skip
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_EXTENDED = {_PAX, b"X", _PAX_GLOBAL, _LONG_NAME, _LONG_LINK}


@dataclass(frozen=True, slots=True)
class _Member:
    """A member whose content comes next; a folder has none."""

    name: str
    size: int
    kind: bytes  # type of header


def _members(plain: IO[bytes]) -> Iterator[_Member]:
    """The members of a tar, to the block of zeros that ends it.

    The content of each must be read before the next is asked for.

    Raises:
        ArchiveError: a member is not described in one way.
        EOFError: a header is damaged or cut off.
    """
    said: dict[bytes, bytes] = {}  # what extended headers say of the next member, by their type
    n_extended = 0
    while (header := _exactly(plain, _BLOCK)) != bytes(_BLOCK):
        kind, size = header[156:157], _number(header[124:136])
        if not _sums_up(header):
            raise EOFError("a header is damaged")
        if kind in _EXTENDED:
            n_extended += 1
            kind = kind.lower() if kind == b"X" else kind
            if size > MAX_HEADER_BYTES or kind in said or n_extended > 4 * MAX_MEMBERS:
                raise ArchiveError(
                    "unsafe_archive",
                    "a member may have at most one extended header of each kind, each of at most "
                    f"{MAX_HEADER_BYTES:,} bytes",
                )
            said[kind] = _exactly(plain, size)
            _skip(plain, -size % _BLOCK)
            if kind == _PAX_GLOBAL and _facts(said.pop(kind)):
                raise ArchiveError(
                    "unsafe_archive", "a global header must not set a name or size for all members"
                )
            continue
        facts = _facts(said.get(_PAX, b""))
        names = [*facts.get(b"path", []), *([said[_LONG_NAME]] if _LONG_NAME in said else [])]
        sizes = [_decimal(digits) for digits in facts.get(b"size", [])] or [size]
        if len(names) > 1 or len(sizes) > 1 or b"sparse" in facts:
            raise ArchiveError(
                "unsafe_archive", "members must be whole files that have one name and one size"
            )
        name = (names or [_plain_name(header)])[0].partition(b"\0")[0]
        if kind == b"\0" and name.endswith(b"/"):  # v7 has no type for folders
            kind = _FOLDER
        size = 0 if kind == _FOLDER else sizes[0]
        yield _Member(name.decode("utf-8", "surrogateescape"), size, kind)
        _skip(plain, -size % _BLOCK)
        said = {}
    if said:
        raise EOFError("an extended header is followed by no member")


def _plain_name(header: bytes) -> bytes:
    name, prefix = (header[a:b].partition(b"\0")[0] for a, b in ((0, 100), (345, 500)))
    # without this magic, other things than the beginning of the name stand there
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _sums_up(header: bytes) -> bool:
    """Whether a header states its sum; some old programs took bytes as signed."""
    rest = header[:148] + b" " * 8 + header[156:]
    difference = sum(rest) - _number(header[148:156])
    return difference in (0, 256 * len(rest.translate(None, _ASCII)))


_ASCII = bytes(range(128))


def _number(digits: bytes) -> int:
    """A number in a header: octal, or binary after a first byte of 0x80."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    text = digits.partition(b"\0")[0].strip(b" ")
    if text.strip(b"01234567"):
        raise EOFError("a header is damaged")
    return int(text or b"0", 8)


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise EOFError("an extended header is damaged")
    return int(digits)


def _facts(content: bytes) -> dict[bytes, list[bytes]]:
    """What a pax header says of name, size and holes; its lines are ``length key=value``."""
    facts: dict[bytes, list[bytes]] = {}
    at = 0
    while at < len(content):
        length = content[at : at + 20].partition(b" ")[0]
        record = content[at : at + _decimal(length)]
        key, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or record[-1:] != b"\n" or len(record) != int(length):
            raise EOFError("an extended header is damaged")
        at += len(record)
        if key.startswith(b"GNU.sparse."):
            facts[b"sparse"] = []
        elif key in (b"path", b"size"):
            facts.setdefault(key, []).append(value)
    return facts
