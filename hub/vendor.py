"""The page's one foreign part, uPlot: fetched from npm by version and kept with its hashes.

``python -m hub.vendor`` fetches it anew, with the machine's own ``npm``, and refuses what npm's
integrity or a recorded hash does not fit. Nothing is fetched when the page is served: the files are
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

VENDOR = Path(__file__).with_name("page") / "vendor"
RECORD = VENDOR / "vendor.json"


def hashes() -> dict[str, str]:
    """The sha256 that is recorded for each file."""
    return {name: entry["sha256"] for name, entry in _record()["files"].items()}


def differing() -> list[str]:
    """Names of vendored files that are absent or have another sha256 than the recorded one."""
    return [
        name
        for name, recorded in hashes().items()
        if not (VENDOR / name).is_file() or _sha256((VENDOR / name).read_bytes()) != recorded
    ]


def fetch(*, record: bool = False) -> None:
    """Fetch the recorded version with npm and write its files; ``record`` also writes their hashes.

    Raises ``ValueError`` if the package or a file is not the recorded one.
    """
    known = _record()
    package = f"{known['package']}@{known['version']}"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True)
        archive = next(Path(folder).glob("*.tgz"))
        digest = hashlib.sha512(archive.read_bytes()).digest()
        integrity = f"sha512-{base64.b64encode(digest).decode()}"
        if integrity != known["integrity"]:
            raise ValueError(
                f"{package}: integrity must be {known['integrity']}, got {integrity}. "
                f"Check the version in {RECORD.name}; nothing was written."
            )
        with tarfile.open(archive) as opened:
            contents = {
                name: _member(opened, entry["from"]) for name, entry in known["files"].items()
            }
    for name, content in contents.items():
        found = _sha256(content)
        if record:
            known["files"][name]["sha256"] = found
        elif found != known["files"][name]["sha256"]:
            raise ValueError(
                f"{package}: {name} must have sha256 {known['files'][name]['sha256']}, got {found}. "
                "Nothing was written."
            )
    for name, content in contents.items():
        (VENDOR / name).write_bytes(content)
    if record:
        RECORD.write_text(json.dumps(known, indent=2) + "\n")


def _record() -> dict[str, dict[str, dict[str, str]]]:
    return json.loads(RECORD.read_text())


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    content = archive.extractfile(f"package/{name}")
    assert content is not None
    return content.read()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    fetch(record="--record" in sys.argv[1:])
