"""Repack an episode with every program that may have packed it: the verdict and the bits stay.

``python tests/repack.py EPISODE.tar.zst`` tries the programs that this machine has, and prints what
came of each. The hash in the index is of the archive, so it is another each time; nothing else is.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from episodes.archive import read_members, read_packed
from episodes.format import ARCHIVE_SUFFIX
from episodes.store import find_archive
from episodes.validation import ValidationPolicy, validate
from features.extraction import extract
from features.registry import LAYOUT

Pack = Callable[[Path, str], bytes]
"""Makes a tar of the folder of an episode: (the folder above it, its name)."""


def program(*command: str) -> tuple[str, Pack]:
    """A program that writes to its standard output; ``ID`` stands for the folder."""

    def pack(above: Path, name: str) -> bytes:
        arguments = [part.replace("ID", name) for part in command]
        return subprocess.run(arguments, cwd=above, capture_output=True, check=True).stdout

    return command[0], pack


def cpio(kind: str) -> tuple[str, Pack]:
    def pack(above: Path, name: str) -> bytes:
        names = [name, *(f"{name}/{path.name}" for path in sorted((above / name).iterdir()))]
        return subprocess.run(
            ["cpio", "--create", f"--format={kind}"],
            cwd=above,
            input="\n".join(names).encode(),
            capture_output=True,
            check=True,
        ).stdout

    return "cpio", pack


def with_python(kind: int) -> tuple[str, Pack]:
    def pack(above: Path, name: str) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=kind) as tar:
            tar.add(above / name, name)
        return packed.getvalue()

    return "python3", pack


PACKERS: dict[str, tuple[str, Pack]] = {
    **{
        f"GNU tar, {kind}": program("tar", f"--format={kind}", "-cf", "-", "ID")
        for kind in ("v7", "ustar", "oldgnu", "gnu", "pax")
    },
    "GNU tar, from .": program("tar", "-cf", "-", "."),
    **{
        f"bsdtar, {kind}": program("bsdtar", f"--format={kind}", "-cf", "-", "ID")
        for kind in ("v7tar", "ustar", "gnutar", "pax")
    },
    "busybox": program("busybox", "tar", "-cf", "-", "ID"),
    "cpio, ustar": cpio("ustar"),
    "cpio, tar": cpio("tar"),
    "7z": program("7z", "a", "-ttar", "-so", "-an", "-bd", "ID"),
    "Python, ustar": with_python(tarfile.USTAR_FORMAT),
    "Python, GNU": with_python(tarfile.GNU_FORMAT),
    "Python, pax": with_python(tarfile.PAX_FORMAT),
}
"""Label -> the program that it needs, and how it packs."""

Compress = Callable[[bytes], bytes]


def piped(*command: str) -> tuple[str, Compress]:
    def compress(tar: bytes) -> bytes:
        return subprocess.run(command, input=tar, capture_output=True, check=True).stdout

    return command[0], compress


def in_frames(tar: bytes) -> bytes:
    pieces = (tar[at : at + 100_000] for at in range(0, len(tar), 100_000))
    return b"".join(zstandard.compress(piece) for piece in pieces)


COMPRESSORS: dict[str, tuple[str, Compress]] = {
    "zstd": piped("zstd", "-q", "-c"),
    "zstd, checksum off": piped("zstd", "-q", "-c", "--no-check", "-1"),
    "zstd, most": piped("zstd", "-q", "-c", "--ultra", "-22"),
    "zstd, long": piped("zstd", "-q", "-c", "--long=27", "-T2"),
    "pzstd": piped("pzstd", "-q", "-c", "-p", "2"),
    "Python": ("python3", zstandard.compress),
    "Python, many frames": ("python3", in_frames),
}


def outcome(path: Path) -> tuple[Any, ...]:
    """The verdict on an archive, and a hash of each array that is extracted from it."""
    record, episode = validate(find_archive(path), ValidationPolicy(), LAYOUT.fields)
    if episode is None:
        return record.verdict, record.reasons, record.details
    made = extract(episode, LAYOUT)
    arrays = (made.series, made.features, made.baseline, made.level, made.windows.label)
    hashes = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    return record.verdict, record.reasons, record.details, record.flags, *hashes


def unpacked(path: Path, above: Path) -> str:
    """Write the files of an episode to a folder; returns its name."""
    name = path.name.removesuffix(ARCHIVE_SUFFIX)
    (above / name).mkdir()
    for file, content in read_members(read_packed(path), name).items():
        (above / name / file).write_bytes(content)
    return name


def repacked(above: Path, name: str, packer: str, compressor: str, out: Path) -> Path:
    """The archive that two programs make of the folder of an episode."""
    out.mkdir(exist_ok=True)
    tar = PACKERS[packer][1](above, name)
    path = out / f"{name}{ARCHIVE_SUFFIX}"
    path.write_bytes(COMPRESSORS[compressor][1](tar))
    return path


def has(label: str) -> bool:
    """Whether this machine has the program of a packer or a compressor."""
    return shutil.which((PACKERS | COMPRESSORS)[label][0]) is not None  # type: ignore[operator]


def pairs() -> list[tuple[str, str]]:
    """Every packer with one compressor, and every compressor with one packer."""
    return [
        *((packer, "Python") for packer in PACKERS),
        *(("Python, pax", compressor) for compressor in COMPRESSORS),
    ]


def main(path: Path) -> int:
    expected, failed = outcome(path), 0
    print(f"{path.name}: {expected[0]}")
    with tempfile.TemporaryDirectory() as folder:
        above = Path(folder, "files")
        above.mkdir()
        name = unpacked(path, above)
        for packer, compressor in pairs():
            if not (has(packer) and has(compressor)):
                said = "not on this machine"
            else:
                path = repacked(above, name, packer, compressor, Path(folder, "out"))
                same = outcome(path) == expected
                said, failed = ("the same", failed) if same else (f"DIFFERS: {outcome(path)}", 1)
            print(f"{packer} + {compressor}: {said}")
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
