"""Faults of a full disk: a command ends with one line, and goes on once there is room again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.kills import HOMELESS, INGEST, addressed, ingested
from faults.table import Bench, Outcome, fault
from faults.warm import warm

LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({n}, {n}))"


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[bool]:
    """A disk of a given size at a folder; whether there is one: a container may not mount."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _on_a_full_disk(bench: Bench, limited: Callable[[Path, int], tuple[str, Path]]) -> Outcome:
    """An ingest that runs out of room somewhere, then one that does not.

    Args:
        limited: takes the folder and the bytes that there are; gives a prelude for the command
            that has only these, and where its artifacts go.
    """
    expected = ingested(bench)
    root, said = bench.copy(expected["folder"]), bench.folder / "said"
    n_bytes = bench.random.randrange(4096, 1_200_000)
    prelude, disk = limited(root, n_bytes)
    words = (*INGEST, "--store", root / "store", "--artifacts", disk / "artifacts")
    first = warm().start(said, *words, env=HOMELESS, prelude=prelude).wait(120)
    if first.broken:
        return first.broken
    if first.code not in (0, 1):
        return Outcome("wrong", f"exit code {first.code}: {first.err[-500:]}")
    if disk != root:
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    for command in (("sync",), INGEST):
        ran = warm().start(said, *command, *words[2:], env=HOMELESS).wait(120)
        if ran.broken or ran.code:
            return ran.broken or Outcome("lost", f"{n_bytes} bytes: {ran.err[-1500:]}")
    if disk != root:
        shutil.copytree(disk / "artifacts", root / "artifacts")
    told = json.loads(warm().start(said, root, call="faults.kills:told_of_ingest").wait(60).out)
    if told["made"] != expected["made"]:
        return Outcome("wrong", f"{n_bytes} bytes: {told}")
    return Outcome("noticed" if first.code else "harmless", f"{n_bytes} bytes: {first.err[-300:]}")


@fault("full disk: a run of Dagster's", tries=10, quick=1)
def full_disk(bench: Bench) -> Outcome:
    disk = bench.folder / "disk"
    with small_disk(disk, 1 << 20) as mounted:

        def limited(root: Path, n_bytes: int) -> tuple[str, Path]:
            if not mounted:
                return LIMIT.format(n=n_bytes), root
            subprocess.run(["mount", "-o", f"remount,size={n_bytes}", str(disk)], check=True)
            return "", disk

        return _on_a_full_disk(bench, limited)


@fault("file too large: a run of Dagster's", tries=3, quick=0)
def large_file(bench: Bench) -> Outcome:
    return _on_a_full_disk(bench, lambda root, n: (LIMIT.format(n=n), root))


WRITES = {
    "extract": ("extract", "{episode}", "--out", "{disk}/x.npz", "--store", "{root}/store"),
    "predict": ("predict", "{batch}", "--out", "{disk}/x.parquet"),
    "bundle": ("bundle", "--out", "{disk}/bundle"),
}


@fault("full disk: --out", tries=9, quick=0)
def full_out(bench: Bench) -> Outcome:
    """What cannot be written whole is not there at all."""
    from faults.kills import lab_at, whole

    root, disk = bench.copy(whole(bench)), bench.folder / "disk"
    lab = lab_at(root)
    name = bench.random.choice(sorted(WRITES))
    values = {
        "episode": lab.store.added[0].episode_id, "disk": str(disk), "root": str(root),
        "batch": next(iter(lab.workspace.listing().batches)),
    }  # fmt: skip
    words: list[str | Path] = [word.format(**values) for word in WRITES[name]]
    words += [] if name == "extract" else addressed(root)
    with small_disk(disk, 4096 * bench.random.randrange(1, 4)) as mounted:
        prelude = "" if mounted else LIMIT.format(n=bench.random.randrange(1, 4096))
        ran = warm().start(bench.folder / "said", *words, env=HOMELESS, prelude=prelude).wait(120)
        left = [path for path in disk.rglob("*") if path.is_file()]
    if ran.broken:
        return ran.broken
    if ran.code not in (1, 2):
        return Outcome("wrong", f"{name}: exit code {ran.code}: {ran.out[-300:]}")
    stumps = [path for path in left if name != "bundle" or path.name == "bundle.json"]
    return Outcome("wrong" if stumps else "noticed", f"{name}: {stumps} {ran.err[-300:]}")
