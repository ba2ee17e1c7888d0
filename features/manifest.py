"""What a stage wrote, and from what: files with their hashes, and the fingerprint of the inputs.

An artefact is a folder with one ``manifest.json``. Files carry a piece of their content's hash in
their name and the manifest is replaced last, in one rename, so that a kill at any moment leaves
the old state or the new one, never a mixture. What the files hold is not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MANIFEST_FILE = "manifest.json"


def fingerprint(value: object) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_may_write: ContextVar[Callable[[], None]] = ContextVar("may_write", default=lambda: None)


@contextmanager
def writes_gated(ask: Callable[[], None]) -> Iterator[None]:
    """Within, ``ask`` is called before anything is put in place; what it raises stops the write.

    For whoever may be told to stop while working, and must leave nothing behind after that.
    """
    before = _may_write.get()
    _may_write.set(ask)
    try:
        yield
    finally:
        _may_write.set(before)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its name always shows the old content whole or the new one whole.

    Every artefact and checkpoint is put in place by this, so here ``writes_gated`` is asked.
    """
    _may_write.get()()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".tmp-{os.getpid()}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Manifest:
    """A finished artefact.

    ``facts`` is what the stage reports of its result: counts, versions, whatever its readers need.
    """

    folder: Path
    fingerprint: str
    files: dict[str, dict[str, Any]]  # role -> {"name", "sha256", "bytes"}
    facts: dict[str, Any]

    @property
    def version(self) -> str:
        """The data version: equal inputs and equal bytes give an equal one."""
        return fingerprint([self.fingerprint, {k: f["sha256"] for k, f in self.files.items()}])

    @property
    def n_bytes(self) -> int:
        return sum(file["bytes"] for file in self.files.values())

    def path(self, role: str) -> Path:
        return self.folder / self.files[role]["name"]

    @property
    def complete(self) -> bool:
        """Whether every file is there in its size: what a look can tell without reading them."""
        return all(
            self.path(role).is_file() and self.path(role).stat().st_size == file["bytes"]
            for role, file in self.files.items()
        )

    def damage(self) -> str | None:
        """What is wrong with the files on disk, None where each has the hash recorded."""
        for role in self.files:
            path = self.path(role)
            if not path.is_file():
                return f"{path} is gone"
            if file_sha256(path) != self.files[role]["sha256"]:
                return f"{path} was changed after it was written"
        return None


def read_manifest(folder: Path) -> Manifest | None:
    """The artefact in ``folder``, None where there is no (readable) one."""
    try:
        value = json.loads((folder / MANIFEST_FILE).read_bytes())
        files = {
            str(role): {
                "name": Path(str(file["name"])).name,
                "sha256": str(file["sha256"]),
                "bytes": int(file["bytes"]),
            }
            for role, file in value["files"].items()
        }
        return Manifest(folder, str(value["fingerprint"]), files, dict(value["facts"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def reusable(folder: Path, expected: str) -> Manifest | None:
    """The artefact in ``folder`` if it was made from equal inputs and is undamaged."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.fingerprint != expected or manifest.damage():
        return None
    return manifest


class Draft:
    """Files of an artefact being written; nothing shows before ``commit``."""

    def __init__(self, folder: Path, scratch: Path):
        self._folder = folder
        self._scratch = scratch
        self._roles: dict[str, str] = {}

    def new_file(self, role: str, suffix: str) -> Path:
        """Where to write the file that plays ``role``."""
        self._roles[role] = suffix
        return self._scratch / f"{role}{suffix}"

    def commit(self, fingerprint: str, facts: dict[str, Any]) -> Manifest:
        """Move the files into place, then the manifest; drop what the last manifest named."""
        _may_write.get()()
        previous = read_manifest(self._folder)
        files = {}
        for role, suffix in self._roles.items():
            written = self._scratch / f"{role}{suffix}"
            digest = file_sha256(written)
            name = f"{role}.{digest[:12]}{suffix}"
            files[role] = {"name": name, "sha256": digest, "bytes": written.stat().st_size}
            with written.open("rb") as content:
                os.fsync(content.fileno())
            written.replace(self._folder / name)
        manifest = Manifest(self._folder, fingerprint, files, facts)
        value = {"fingerprint": fingerprint, "files": files, "facts": facts}
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
        write_atomically(self._folder / MANIFEST_FILE, text.encode() + b"\n")
        kept = {file["name"] for file in files.values()}
        for file in previous.files.values() if previous else ():
            if file["name"] not in kept:
                (self._folder / file["name"]).unlink(missing_ok=True)
        return manifest


@contextmanager
def draft(folder: Path) -> Iterator[Draft]:
    """Stage an artefact beside its final place; without ``commit`` nothing remains."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".tmp-{os.getpid()}-") as scratch:
        yield Draft(folder, Path(scratch))
