"""How far a training came, in a file: after a kill it resumes from there.

What is in it is the trainer's. The file is used only if it is whole and of the same training; any
other is ignored with one line, and the training starts anew.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from features.files import read_regular, write_atomically

log = logging.getLogger("phasewatch")
FOLDER = "training"
"""In the artifacts folder: what unfinished trainings can resume from."""
SUFFIX = ".state"
EVERY_S = 20.0
"""Between two savings at least."""
COST = 0.01
"""Of the time of a training, about so much at most is spent on saving it."""
MAX_BYTES = 2**31
_MAGIC = b"phasewatch.training/1"


class Bookmark:
    """The file of one training.

    Args:
        key: the fingerprint of what is trained: data, settings and code.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self._saved = time.monotonic()
        self._took_s = 0.0
        self._broken = False

    def read(self) -> bytes | None:
        """What was saved last; None if nothing was, or nothing that can be used."""
        try:
            content = read_regular(self.path, MAX_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.ignore(str(error))
            return None
        head, _, saved = content.partition(b"\n")
        if head != self._head(saved):
            known = head.split(b" ")[:2] == [_MAGIC, self.key.encode()]
            self.ignore("it is damaged" if known else "it is not of this training")
            return None
        return saved

    def ignore(self, why: str) -> None:
        """Say that the file is of no use."""
        log.warning("%s is ignored: %s; the training starts anew", self.path, why)

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        passed = time.monotonic() - self._saved
        return not self._broken and passed >= max(EVERY_S, self._took_s / COST)

    def save(self, pack: Callable[[], bytes]) -> None:
        """Save what ``pack`` gives; a full disk keeps no training from its end."""
        began = time.monotonic()
        content = pack()
        try:
            write_atomically(self.path, self._head(content) + b"\n" + content)
        except OSError as error:
            self._broken = True
            log.warning("%s: training continues without being saved: %s", self.path, error)
        self._saved = time.monotonic()
        self._took_s = self._saved - began

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _head(self, content: bytes) -> bytes:
        digest = hashlib.sha256(self.key.encode() + b"\n" + content).hexdigest()
        return b" ".join((_MAGIC, self.key.encode(), digest.encode()))
