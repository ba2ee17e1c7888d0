"""Manifests: what a stage wrote and from what. Only ``stages/`` reads them.

An artifact is a folder with one ``manifest.json``. Files carry a piece of their content's hash in
their name, and the manifest is replaced last, in one rename: a kill at any moment leaves the old
state or the new one, never a mixture.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.disk import folder_lock, sync
from config.signing import Signed, distrust, sealed, signed, unsealed
from episodes.environment import settled
from features.files import (
    check_may_write,
    file_sha256,
    fingerprint,
    write_atomically,
)
from stages.status import StageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MANIFEST_FILE = "manifest.json"
_FIELDS, _SINCE = {"fingerprint", "files", "facts"}, {"stage_version"}


class DamagedError(StageError):
    """A file is not the one that its manifest lists; the message says which, and what to do."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"{problem}. Run: {remedy}" if remedy else problem)
        self.problem = problem


@dataclass(frozen=True)
class Manifest:
    """A finished artifact.

    ``facts`` is what the stage reports of its result: counts, versions, whatever its readers need.
    """

    folder: Path
    fingerprint: str
    files: dict[str, dict[str, Any]]  # role -> {"name", "sha256", "bytes"}
    facts: dict[str, Any]
    stage_version: str = ""  # of the stage that wrote it; empty: written before it was recorded
    remedy: str = field(default="", compare=False)  # the command that makes it again
    digest: str | None = field(default=None, compare=False)  # its seal; None: it has none
    signature: Any = field(default=None, compare=False)

    def sealed(self) -> bytes:
        """What its file holds."""
        value = {
            "fingerprint": self.fingerprint, "files": self.files, "facts": self.facts,
            "stage_version": self.stage_version,
        }  # fmt: skip
        return sealed(value, "manifest")

    @property
    def version(self) -> str:
        """The data version: equal inputs and equal bytes give an equal one."""
        return fingerprint([self.fingerprint, {k: f["sha256"] for k, f in self.files.items()}])

    @property
    def n_bytes(self) -> int:
        return sum(file["bytes"] for file in self.files.values())

    @property
    def signed(self) -> Signed:
        """Who signed it; with its files, because it has their hashes."""
        return signed("manifest", self.digest, self.signature)

    def place(self, role: str) -> Path:
        """Where a file is, whatever is in it."""
        return self.folder / self.files[role]["name"]

    def path(self, role: str) -> Path:
        """A file to be read: it was looked at in this process, and is as it was written.

        Raises:
            DamagedError: it is gone, or was changed.
        """
        if problem := self.damage(roles=(role,)):
            raise DamagedError(problem, self.remedy)
        return self.place(role)

    def paths(self, kind: str) -> list[Path]:
        """The files whose role contains ``kind``, in the order of their roles; see ``path``."""
        return [self.path(role) for role in sorted(self.files) if kind in role]

    def damage(self, *, verify: bool = True, roles: Collection[str] | None = None) -> str | None:
        """What is wrong with the files on disk; None if nothing is.

        Args:
            verify: compare the hash of every file; otherwise only presence and size are checked.
            roles: look at these files only.
        """
        if why := distrust(self.signed, required=False):
            return f"{self.folder / MANIFEST_FILE}: {why}"
        for role in self.files if roles is None else roles:
            file = self.files[role]
            path = f"{self.folder}/{file['name']}"
            try:
                state = os.stat(path)  # noqa: PTH116 - a Path costs more than the answer
            except OSError:
                state = None
            if state is None or not stat.S_ISREG(state.st_mode):
                return f"{self.place(role)} is gone"
            if state.st_size != file["bytes"] or (
                verify and _sha256(path, state) != file["sha256"]
            ):
                return f"{self.place(role)} was changed after it was written"
        return None


_hashes: dict[str, tuple[tuple[int, ...], str]] = {}


def _sha256(path: str, state: os.stat_result) -> str:
    """The hash of a file, computed once per process while the file stays as it is."""
    seen = _state(state)
    before, digest = _hashes.get(path, (None, ""))
    if seen != before:
        digest = file_sha256(Path(path))
        if settled(state):
            _hashes[path] = seen, digest
    return digest


def _put_in_place(written: Path, path: Path, digest: str) -> None:
    """Rename a file that was hashed, and remember its hash.

    A change from now on gives it the time of the renaming or a later one: if it was written before
    that, its times tell one state from the next.
    """
    written.replace(path)
    state = path.stat()
    if state.st_mtime_ns < state.st_ctime_ns:
        _hashes[str(path)] = _state(state), digest


def _state(state: os.stat_result) -> tuple[int, ...]:
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def read_manifest(folder: Path, remedy: str = "") -> Manifest | None:
    """The artifact in ``folder``, None if there is no readable one; see ``manifest_damage``."""
    try:
        return _read(folder, remedy)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def manifest_damage(folder: Path) -> str | None:
    """Why there is no readable artifact in ``folder``; None if there is one, or nothing at all."""
    try:
        _read(folder, "")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"it {error}" if isinstance(error, ValueError) else str(error)
        why = getattr(error, "strerror", None) or why
        return f"{folder / MANIFEST_FILE}: cannot be used: {why}"
    return None


def _read(folder: Path, remedy: str) -> Manifest:
    with open(f"{folder}/{MANIFEST_FILE}", "rb", buffering=0) as file:  # noqa: PTH123
        content = unsealed(file.read(), _FIELDS, _SINCE)
    value = content.value
    files = {
        str(role): {
            "name": _base_name(str(file["name"])),
            "sha256": str(file["sha256"]),
            "bytes": int(file["bytes"]),
        }
        for role, file in value["files"].items()
    }
    return Manifest(
        folder,
        str(value["fingerprint"]),
        files,
        dict(value["facts"]),
        str(value.get("stage_version", "")),
        remedy,
        content.digest,
        content.signature,
    )


def _base_name(name: str) -> str:
    return Path(name).name if "/" in name or name == "." else name


def write_manifest(manifest: Manifest) -> Manifest:
    """Put a manifest in place; the files it names must be there already."""
    content = manifest.sealed()
    write_atomically(manifest.folder / MANIFEST_FILE, content)
    seal = unsealed(content, _FIELDS, _SINCE)
    return replace(manifest, digest=seal.digest, signature=seal.signature)


_FILE_NAME = re.compile(r"[\w-]+\.[0-9a-f]{12}\.\w+")  # role, hash and suffix


class Draft:
    """Files of an artifact that is being written; nothing shows before ``commit``."""

    def __init__(self, folder: Path, scratch: Path):
        self._folder = folder
        self._scratch = scratch
        self._roles: dict[str, str] = {}
        self._kept: dict[str, dict[str, Any]] = {}

    def keep(self, manifest: Manifest, roles: Collection[str]) -> None:
        """Take over files of the artifact that is there, as they are."""
        self._kept |= {role: manifest.files[role] for role in roles}

    def new_file(self, role: str, suffix: str) -> Path:
        """Where to write the file that plays ``role``."""
        self._roles[role] = suffix
        return self._scratch / f"{role}{suffix}"

    def commit(self, fingerprint: str, facts: dict[str, Any], stage_version: str = "") -> Manifest:
        """Move the files into place, then the manifest; drop the files that it does not name.

        Raises:
            OSError: also where another process replaced a file meanwhile that was to be kept.
        """
        with folder_lock(self._folder):
            return self._commit(fingerprint, facts, stage_version)

    def _commit(self, fingerprint: str, facts: dict[str, Any], stage_version: str) -> Manifest:
        check_may_write()
        for file in self._kept.values():
            if not (self._folder / file["name"]).exists():
                path = str(self._folder / file["name"])
                raise OSError(errno.ESTALE, "another run replaced it: run this again", path)
        files = dict(self._kept)
        for role, suffix in self._roles.items():
            written = self._scratch / f"{role}{suffix}"
            digest = file_sha256(written)
            name = f"{role}.{digest[:12]}{suffix}"
            files[role] = {"name": name, "sha256": digest, "bytes": written.stat().st_size}
            with written.open("rb") as content:
                sync(content.fileno())
            _put_in_place(written, self._folder / name, digest)
        manifest = write_manifest(Manifest(self._folder, fingerprint, files, facts, stage_version))
        kept = {file["name"] for file in files.values()}
        for found in self._folder.iterdir():  # also files left by a killed commit
            if _FILE_NAME.fullmatch(found.name) and found.name not in kept:
                found.unlink(missing_ok=True)
        return manifest


@contextmanager
def draft(folder: Path) -> Iterator[Draft]:
    """Stage an artifact beside its final place; without ``commit`` nothing remains."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".tmp-{os.getpid()}-") as scratch:
        yield Draft(folder, Path(scratch))
