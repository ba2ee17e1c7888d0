"""What an episode costs to ingest, whatever is there already.

    python -m benchmarks.growth [--episodes 2000] [--days 20] [--hosts 12] [--added 500]
        [--rounds 3] [--store DIR]

A simulated store is ingested; then episodes are added to it, and only to an empty one. Both are
ingested by the command that people use, in processes of their own. Beside that: what hashing and
unpacking alone cost, and what validating and extracting cost, in this process. Processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.extraction import EVERYTHING, FLOORS
from benchmarks.lines import Recording, alternated, recording
from episodes.store import list_store
from episodes.validation import ValidationPolicy
from features.registry import LAYOUT
from stages.validating import validate_and_extract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from episodes.store import StoredEpisode

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = 200
SIZES = (100, 1000)


@dataclass(frozen=True)
class Cost:
    """Of a command and all processes that it started."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def command(*words: str, cores: int | None = None) -> Cost:
    """Run phasewatch.

    Raises:
        SystemExit: it failed.
    """
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    began = os.times().elapsed
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.app", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"phasewatch {' '.join(words)}: ended with {status}")
    return Cost(used.ru_utime + used.ru_stime, os.times().elapsed - began, used.ru_maxrss / 1024)


def ingest(store: Path, artifacts: Path, cores: int | None = None) -> Cost:
    return command(
        "run", "--ingest-only", "--store", str(store), "--artifacts", str(artifacts), cores=cores
    )


def linked(source: Path, target: Path, episodes: Sequence[StoredEpisode]) -> None:
    """A store of some of the episodes of another, without copying archives."""
    wanted = {episode.episode_id for episode in episodes}
    for episode in episodes:
        path = target / episode.path.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        if episode.path.exists():
            os.link(episode.path, path)
    lines = (source / "index.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["episode_id"] in wanted]
    (target / "index.jsonl").write_text("".join(kept), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--added", type=int, default=500)
    parser.add_argument("--days", type=int, default=20)
    parser.add_argument("--hosts", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path, help="a simulated store that is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.store and options.store.parent) as scratch:
        measure(Path(scratch), options)


def measure(scratch: Path, options: argparse.Namespace) -> None:
    store = options.store or scratch / "store"
    if not options.store:
        command(
            "simulate", "--store", str(store), "--episodes", str(options.episodes),
            "--days", str(options.days), "--hosts", str(options.hosts),
        )  # fmt: skip
    episodes = list_store(store).episodes
    with recording("growth") as out:
        validation = _validation(episodes, out)
        start = _start(scratch)
        out.alone("start of the command", start, "CPU s")
        grown, artifacts = scratch / "grown", scratch / "grown-artifacts"
        for n in [size for size in SIZES if size < len(episodes)]:
            some = scratch / f"store-{n}"
            linked(store, some, episodes[:n])  # whole batches
            _point(out, n, ingest(some, scratch / f"artifacts-{n}", cores=1), start)
        linked(store, grown, episodes)
        one = ingest(grown, scratch / "one", cores=1)
        shutil.rmtree(scratch / "one")
        two = ingest(grown, artifacts, cores=2)
        each = _point(out, len(episodes), one, start)
        size = len(episodes)
        out.limit("overhead beside validating", each / validation - 1, 0.25, "share", size=size)
        out.limit("two cores beside one", one.wall_s / two.wall_s, 1.7, "times", "the floor",
                  better="more", size=size)  # fmt: skip
        _added(scratch, store, options, out, size)


def _point(out: Recording, n: int, cost: Cost, start: float) -> float:
    """Add what so many episodes cost; returns seconds an episode without the command's start."""
    each = (cost.cpu_s - start) / n
    out.point("ingest", n, "episodes", 1000 * each, "CPU ms an episode", series="one core")
    out.point("memory of ingest", n, "episodes", cost.peak_mib, "MiB", series="one core")
    return each


def _validation(episodes: Sequence[StoredEpisode], out: Recording) -> float:
    """Seconds that validating and extracting an episode take; hashing and unpacking beside it."""
    sample = [e for e in episodes if e.size_bytes][:: max(1, len(episodes) // SAMPLE)][:SAMPLE]
    policy = ValidationPolicy()
    whole = "validate and extract"
    ways = {whole: lambda e: validate_and_extract(e, policy, LAYOUT), **FLOORS}
    rounds = alternated(ways, sample, rounds=3)
    seconds = {name: statistics.median(rounds[name]) for name in ways}
    for name in ways:
        out.alone(name, 1000 * seconds[name], "CPU ms an episode")
    for name in FLOORS:
        out.limit(f"{whole} beside {name}", seconds[whole] / seconds[name], EVERYTHING, "times")
    return seconds[whole]


def _start(scratch: Path) -> float:
    """Processor seconds of a command that finds nothing to do."""
    nothing = scratch / "nothing"
    (nothing / "episodes").mkdir(parents=True)
    (nothing / "index.jsonl").touch()
    words = ("sync", "--store", str(nothing), "--artifacts")
    return min(command(*words, str(scratch / f"none-{i}"), cores=1).cpu_s for i in range(3))


def _added(
    scratch: Path, store: Path, options: argparse.Namespace, out: Recording, size: int
) -> None:
    """What the same new episodes cost on a large store and on an empty one."""
    grown, artifacts, alone = (scratch / n for n in ("grown", "grown-artifacts", "alone"))
    before = {episode.episode_id for episode in list_store(grown).episodes}
    shutil.copy(store / "simulation.json", grown / "simulation.json")  # it may be added to
    command(
        "simulate", "--store", str(grown), "--append", "--episodes", str(options.added),
        "--days", "2", "--hosts", "10",
    )  # fmt: skip
    added = [e for e in list_store(grown).episodes if e.episode_id not in before]
    linked(grown, alone, added)
    batches = {episode.batch for episode in added}
    ratios = []
    for i in range(options.rounds):
        empty = ingest(alone, scratch / f"alone-{i}", cores=2)
        later = ingest(grown, artifacts, cores=2)
        ratios.append(later.cpu_s / empty.cpu_s)
        shutil.rmtree(scratch / f"alone-{i}")
        for batch in batches:
            shutil.rmtree(artifacts / "batches" / batch)
    name = f"{len(added)} more in {len(batches)} batches, beside an empty store"
    out.limit(name, statistics.median(ratios), 1.25, "times", size=size)


if __name__ == "__main__":
    main()
