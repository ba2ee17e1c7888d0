"""Which batches were found current, kept between processes while nothing on disk changes.

Ten thousand batches have thirty thousand manifests to read, and gigabytes of shards to hash. Only
the answer is kept: whoever reads a file still compares its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from episodes.environment import settled_since
from features.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path


class StatusCache:
    """Identities of what was current, by ``<stage>/<batch>``.

    Args:
        path: where they are kept. What cannot be read there is forgotten.
    """

    def __init__(self, path: Path):
        self._path = path
        self._changed = False
        try:
            value = json.loads(path.read_bytes())
            self._known = {
                str(key): (str(identity), bool(sure)) for key, (identity, sure) in value.items()
            }
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            self._known = {}

    def holds(self, key: str, identity: str, *, verified: bool) -> bool:
        """Whether this was current, and with ``verified`` had the hashes that it should have."""
        known, sure = self._known.get(key, ("", False))
        return known == identity and (sure or not verified)

    def add(self, key: str, identity: str, *, verified: bool) -> None:
        if not self.holds(key, identity, verified=verified):
            self._known[key] = identity, verified
            self._changed = True

    def save(self, batches: Collection[str]) -> None:
        """Write down those of these batches; where that fails, the next process looks again."""
        if self._changed:
            known = {k: each for k, each in self._known.items() if k.rpartition("/")[2] in batches}
            with suppress(OSError):
                write_atomically(self._path, json.dumps(known).encode())
            self._changed = False


def files_identity(made_from: str, folders: Iterable[str]) -> str | None:
    """Identity of what an artifact is made from and of the files in its folders.

    None where a change could leave the same behind: it was written within the last two seconds.
    """
    seen, latest = [], 0
    with suppress(OSError):
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    s = entry.stat()
                    times = s.st_mtime_ns, s.st_ctime_ns
                    latest = max(latest, *times)
                    seen.append((entry.name, s.st_dev, s.st_ino, s.st_size, *times))
        if settled_since(latest):
            return hashlib.sha256(f"{made_from} {sorted(seen)}".encode()).hexdigest()
    return None
