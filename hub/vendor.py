"""The page's one foreign part, uPlot: fetched from npm by version and kept with its hashes.

``python -m hub.vendor`` fetches it anew with the machine's own ``npm``, and refuses what does not
have the recorded integrity and hashes. Nothing is fetched when the page is served: the files are
committed. To take another version, edit ``vendor.json`` and run ``python -m hub.vendor --record``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TypedDict

VENDOR = Path(__file__).with_name("page") / "vendor"
RECORD = VENDOR / "vendor.json"

File = TypedDict("File", {"from": str, "sha256": str})


class Package(TypedDict):
    """What ``vendor.json`` says."""

    package: str
    version: str
    licence: str
    integrity: str  # of the archive, as npm writes it
    files: dict[str, File]


def read_record() -> Package:
    """The package, its version, and the sha256 of each file that is kept of it."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def fetch(*, record: bool) -> None:
    """Fetch the recorded version and write its files; with ``record``, their hashes too.

    Raises:
        ValueError: the package or a file is not the recorded one; nothing was written.
    """
    known = read_record()
    contents = _unpacked(known)
    for name, content in contents.items():
        found = _sha256(content)
        if record:
            known["files"][name]["sha256"] = found
        elif found != known["files"][name]["sha256"]:
            raise ValueError(
                f"{name} of {known['package']} {known['version']}: sha256 must be "
                f"{known['files'][name]['sha256']}, got {found}; nothing was written"
            )
    for name, content in contents.items():
        (VENDOR / name).write_bytes(content)
    if record:
        RECORD.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _unpacked(known: Package) -> dict[str, bytes]:
    package = f"{known['package']}@{known['version']}"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True)
        path = next(Path(folder).glob("*.tgz"))
        integrity = (
            f"sha512-{base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()}"
        )
        if integrity != known["integrity"]:
            raise ValueError(
                f"{package}: integrity must be {known['integrity']}, got {integrity}; check the "
                f"version in {RECORD.name}; nothing was written"
            )
        with tarfile.open(path) as archive:
            return {name: _member(archive, file["from"]) for name, file in known["files"].items()}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    content = archive.extractfile(f"package/{name}")
    if content is None:
        raise ValueError(f"{name}: not a file of the package; correct it in {RECORD.name}")
    return content.read()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    fetch(record="--record" in sys.argv[1:])
