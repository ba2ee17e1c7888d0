"""What an episode costs to ingest, whatever is there already.

    python -m benchmarks.growth [--episodes 2000] [--added 500] [--rounds 3] [--store DIR]

A simulated store is ingested; then episodes are added to it, and only to an empty one. Both are
ingested by the command that people use, in processes of their own. Beside that: what hashing and
unpacking alone cost, and what judging and extracting cost, in this process. Processor seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from episodes.archive import ArchiveError, read_members, read_packed
from episodes.store import list_store
from episodes.validation import ValidationPolicy
from features.registry import LAYOUT
from stages.judging import judged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from episodes.store import StoredEpisode

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = 200


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
    lines = (source / "index.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["episode_id"] in wanted]
    (target / "index.jsonl").write_text("".join(kept))


def cpu_of(work: Callable[[], object]) -> float:
    """Processor seconds of work in this process."""
    before = os.times()
    work()
    after = os.times()
    return after.user + after.system - before.user - before.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--added", type=int, default=500)
    parser.add_argument("--days", type=int, default=20)
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
            "--days", str(options.days),
        )  # fmt: skip
    episodes = list_store(store).episodes
    sample = [e for e in episodes if e.size_bytes][:: max(1, len(episodes) // SAMPLE)][:SAMPLE]
    policy = ValidationPolicy()
    judged(sample[0], policy, LAYOUT)  # kernels are loaded outside the measurement
    floors, judgings = [], []
    for _ in range(3):
        floors.append(cpu_of(lambda: [_floor(e) for e in sample]) / len(sample))
        judgings.append(cpu_of(lambda: [judged(e, policy, LAYOUT) for e in sample]) / len(sample))
    floor, judge = statistics.median(floors), statistics.median(judgings)
    print(f"hash and unpack      {1000 * floor:8.2f} ms an episode")
    print(f"judge and extract    {1000 * judge:8.2f} ms an episode, {judge / floor:.2f} x")

    grown = scratch / "grown"
    linked(store, grown, episodes)
    nothing = scratch / "nothing"
    (nothing / "episodes").mkdir(parents=True)
    (nothing / "index.jsonl").touch()
    start = min(_start(nothing, scratch / f"none-{i}").cpu_s for i in range(3))
    print(f"start of the command {start:8.2f} s")
    one = ingest(grown, scratch / "one", cores=1)
    artifacts = scratch / "grown-artifacts"
    two = ingest(grown, artifacts, cores=2)
    shutil.rmtree(scratch / "one")
    n = len(episodes)
    for name, cost in (("one core", one), ("two cores", two)):
        each = (cost.cpu_s - start) / n
        print(
            f"{n} episodes, {name}: {1000 * each:.2f} ms an episode without the start, "
            f"{each / floor:.2f} x hash and unpack, overhead {each / judge - 1:.0%} of judging; "
            f"{cost.wall_s:.0f} s, {cost.peak_mib:.0f} MiB"
        )
    print(f"two cores: {one.wall_s / two.wall_s:.2f} x one")

    before = {episode.episode_id for episode in episodes}
    command(
        "simulate", "--store", str(_writable(store, grown)), "--append",
        "--episodes", str(options.added), "--days", "2", "--hosts", "10",
    )  # fmt: skip
    added = [e for e in list_store(grown).episodes if e.episode_id not in before]
    alone = scratch / "alone"
    linked(grown, alone, added)
    batches = {episode.batch for episode in added}
    ratios = []
    for i in range(options.rounds):
        empty = ingest(alone, scratch / f"alone-{i}", cores=2)
        later = ingest(grown, artifacts, cores=2)
        ratios.append(later.cpu_s / empty.cpu_s)
        print(
            f"{len(added)} more in {len(batches)} batches: {later.cpu_s:.1f} s on {n} episodes, "
            f"{empty.cpu_s:.1f} s on none, {ratios[-1]:.2f} x; {later.peak_mib:.0f} and "
            f"{empty.peak_mib:.0f} MiB"
        )
        shutil.rmtree(scratch / f"alone-{i}")
        for batch in batches:
            shutil.rmtree(artifacts / "batches" / batch)
    print(f"median {statistics.median(ratios):.2f} x")


def _floor(episode: StoredEpisode) -> None:
    packed = read_packed(episode.path)
    hashlib.sha256(packed).digest()
    with suppress(ArchiveError):  # a defective one
        read_members(packed, episode.episode_id)


def _start(store: Path, artifacts: Path) -> Cost:
    return command("sync", "--store", str(store), "--artifacts", str(artifacts), cores=1)


def _writable(store: Path, grown: Path) -> Path:
    """The linked store as one that ``simulate`` may add to."""
    shutil.copy(store / "simulation.json", grown / "simulation.json")
    return grown


if __name__ == "__main__":
    main()
