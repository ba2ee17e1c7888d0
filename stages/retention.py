"""What of an artifacts folder can go when it is larger than its budget, and how large it is.

Only what nothing reads any more, in this order: what killed processes left, old scores of a batch
(it keeps two tables: the champion's and the newest other one, or else the two newest), and copies
of checkpoints that were never a champion's. All else stays, over the budget or not: a person
decides about that.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from champion.history import read_history
from models.bookmark import FOLDER, SUFFIX
from models.registry import find_variant
from stages.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stages.workspace import Workspace

KEPT_SCORES = 2
"""Of a batch as many tables of scores stay, the newest and the champion's; others may go."""
DAY_S = 86_400.0
"""Nothing younger goes: no run takes longer, and a promotion copies before it writes its entry."""

PRUNED_FILE = "pruned.json"
"""In the artifacts folder: what was dropped last, and when."""

log = logging.getLogger("phasewatch")

_UNFINISHED = re.compile(r"\.tmp-(\d+)-")  # as `features.files` and `stages.manifest` name them
Kind = Literal["unfinished", "scores", "copy"]


@dataclass(frozen=True)
class Discard:
    """A file or folder that can go."""

    path: Path
    n_bytes: int
    kind: Kind
    why: str


@dataclass(frozen=True)
class DiskUsage:
    """Bytes of an artifacts folder."""

    by_kind: dict[str, int]  # name in the folder -> bytes
    unfinished: list[Discard]

    @property
    def n_bytes(self) -> int:
        return sum(self.by_kind.values())


def disk_usage(folder: Path) -> DiskUsage:
    """How large everything in an artifacts folder is, in one walk."""
    by_kind, unfinished = dict[str, int](), list[Discard]()
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        by_kind[entry.name] = _measure(entry, unfinished)
    return DiskUsage(by_kind, unfinished)


def items_to_discard(workspace: Workspace, used: DiskUsage) -> list[Discard]:
    """What goes now: what killed processes left, and as much more as the budget asks for.

    Raises:
        ChampionError: the champion's history cannot be read, so nothing is known to be old.
    """
    going = list(used.unfinished)
    budget = workspace.artifacts_budget_gb * 1e9
    if not budget:
        return going
    left = used.n_bytes - sum(item.n_bytes for item in going)
    for item in (*_replaced_scores(workspace), *_never_in_use(workspace)):
        if left <= budget:
            break
        going.append(item)
        left -= item.n_bytes
    return going


def delete_items(items: list[Discard]) -> list[Discard]:
    """Remove them; returns those that are gone. The others are logged.

    A killed removal leaves no artifact that looks whole.
    """
    gone = []
    for item in items:
        with suppress(OSError):
            if item.path.is_dir():
                (item.path / MANIFEST_FILE).unlink(missing_ok=True)
                shutil.rmtree(item.path, ignore_errors=True)
            else:
                item.path.unlink(missing_ok=True)
        if os.path.lexists(item.path):
            log.warning("%s: could not be deleted; delete it by hand", item.path)
        else:
            gone.append(item)
        if item.kind == "scores":
            with suppress(OSError):  # others of this batch are left
                item.path.parent.rmdir()
    return gone


def _replaced_scores(workspace: Workspace) -> Iterator[Discard]:
    """Scores of a batch that are neither the champion's nor among the newest; the oldest first."""
    history = read_history(workspace.champion_folder)
    names = {
        workspace.predictions_folder("", c.served, find_variant(c.model, c.mode)).name
        for c in history[-1:]
    }
    old: list[tuple[float, Path]] = []
    for batch in _folders(workspace.artifacts_path / "predictions"):
        scored = sorted(
            ((_changed(folder / MANIFEST_FILE), folder) for folder in _folders(batch)),
            key=lambda one: (one[1].name in names, one[0]),
        )
        old += scored[:-KEPT_SCORES]
    for moment, folder in sorted(old):
        if time.time() - moment > DAY_S:
            day = time.strftime("%Y-%m-%d", time.gmtime(moment))
            why = f"scored {day}; the champion's and the newest scores of the batch stay"
            yield Discard(folder, folder_bytes(folder), "scores", why)


def _never_in_use(workspace: Workspace) -> Iterator[Discard]:
    """Copies of checkpoints that no entry of the history names; the oldest first."""
    history = read_history(workspace.champion_folder)
    named = {checkpoint for champion in history for checkpoint in champion.checkpoints.values()}
    copies = _folders(workspace.champion_folder / "checkpoints")
    for folder in sorted(copies, key=_changed):
        if folder.name not in named and time.time() - _changed(folder) > DAY_S:
            why = "copied for a promotion that did not happen"
            yield Discard(folder, folder_bytes(folder), "copy", why)


def last_pruned(artifacts: Path) -> str | None:
    """When an artifacts folder was pruned last, None if it never was."""
    try:
        return str(json.loads((artifacts / PRUNED_FILE).read_bytes())["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(_measure(entry, []) for entry in _entries(folder))


def _measure(entry: os.DirEntry[str], unfinished: list[Discard]) -> int:
    """Bytes of an entry; what in it a killed process left is added to ``unfinished``."""
    try:
        if entry.is_dir(follow_symlinks=False):
            n_bytes = sum(_measure(below, unfinished) for below in _entries(entry.path))
        else:
            n_bytes = entry.stat(follow_symlinks=False).st_size
    except OSError:  # removed meanwhile
        return 0
    if entry.name.endswith(SUFFIX) and _is_abandoned(Path(entry.path)):
        why = "a training was killed and never resumed"
        unfinished.append(Discard(Path(entry.path), n_bytes, "unfinished", why))
    if entry.name.startswith(".tmp-") and (match := _UNFINISHED.match(entry.name)):
        path, process = Path(entry.path), int(match[1])
        if _is_left(path, process):
            why = f"process {process} was killed while it wrote"
            unfinished.append(Discard(path, n_bytes, "unfinished", why))
    return n_bytes


def _is_abandoned(path: Path) -> bool:
    """Whether it is the saved state of a training that was not resumed within a day."""
    return path.parent.name == FOLDER and time.time() - _changed(path) > DAY_S


def _is_left(path: Path, process: int) -> bool:
    """Whether nobody writes it any more; a process of another machine has ended after a day.

    A process that started after the last change has reused the id of the one that wrote.
    """
    newest = _last_change(path)
    return time.time() - newest > DAY_S and _started(process) > newest


def _last_change(path: Path) -> float:
    """The latest change of a file, or of anything in a folder, while others may delete it."""
    return max((_changed(path), *(_last_change(Path(entry.path)) for entry in _entries(path))))


def _started(process: int) -> float:
    """When a process of this machine started, in seconds since the epoch; infinity: it is none."""
    if (ticks := start_ticks(process)) is None:
        return math.inf
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def start_ticks(process: int) -> int | None:
    """When a process of this machine started, in clock ticks since its boot; None: it is none."""
    try:
        return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except OSError:
        return None


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    return [Path(e.path) for e in _entries(folder) if e.is_dir(follow_symlinks=False)]
