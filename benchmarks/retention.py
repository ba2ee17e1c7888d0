"""How much a day adds to Dagster's records, and what pruning leaves of it.

    python -m benchmarks.retention [--rounds N] [--home DAGSTER_HOME]

A small store (one episode of each batch of the embedded store) is ingested by the real job, round
after round, as the sensor would when every batch gains episodes. What a run records does not depend
on how many episodes it reads, so the bytes of a round divided by its batches are those of any
ingest run. ``--home`` also sums up the records of existing runs by job, such as those of
``artifacts/dagster_home`` after ``make run``. Pruning is timed on what the rounds left, as if all
of it were old.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.lines import recording
from episodes.store import list_store
from pipelines.graph import build_defs
from pipelines.home import dagster_instance
from pipelines.partitions import sync_batches
from resources.records import prune_records, record_bytes
from stages.workspace import Workspace

ROUNDS = 3
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def small_store(root: Path) -> int:
    """One episode of each batch of the embedded store, the smallest; how many batches."""
    batches = list_store(Path("data/store")).batches
    chosen = [min(b, key=lambda e: e.size_bytes or 1 << 60) for b in batches.values()]
    ids = {episode.episode_id for episode in chosen}
    root.mkdir()
    lines = Path("data/store/index.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (root / "index.jsonl").write_text(
        "".join(x for x in lines if any(i in x for i in ids)), encoding="utf-8"
    )
    for episode in chosen:
        target = root / "episodes" / episode.host_id
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(episode.path, target)
    return len(batches)


def by_job(home: Path) -> None:
    """Bytes of the runs of a home: of their own logs, and of what they put into the index."""
    with sqlite3.connect(f"file:{home}/history/runs.db?mode=ro", uri=True) as runs:
        jobs = dict(runs.execute("SELECT run_id, pipeline_name FROM runs"))
    with sqlite3.connect(f"file:{home}/history/runs/index.db?mode=ro", uri=True) as index:
        shared = dict(
            index.execute("SELECT run_id, sum(length(event)) FROM event_logs GROUP BY run_id")
        )
    print(f"\n{'job':<14}{'runs':>6}{'own log kB':>13}{'in the index kB':>17}   each")
    for job in sorted(set(jobs.values())):
        ids = [run for run, name in jobs.items() if name == job]
        files = [home / "history" / "runs" / f"{run}.db" for run in ids]
        own = sum(file.stat().st_size for file in files if file.exists()) / len(ids)
        common = sum(shared.get(run, 0) for run in ids) / len(ids)
        print(f"{job:<14}{len(ids):>6}{own / 1e3:>13,.0f}{common / 1e3:>17,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--home", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retention-") as folder:
        root = Path(folder)
        n_batches = small_store(root / "store")
        workspace = Workspace(store=str(root / "store"), artifacts=str(root / "artifacts"))
        job = build_defs(workspace=workspace).resolve_job_def("ingest")
        with dagster_instance(workspace) as instance:
            batches = list(sync_batches(instance, workspace).listing.batches)
            before = size = empty = record_bytes(instance)
            print(f"an empty database: {empty / 1e3:,.0f} kB")
            for n in range(chosen.rounds):
                for batch in batches:
                    done = job.execute_in_process(
                        run_config=_QUIET, instance=instance, partition_key=batch
                    )
                    assert done.success
                before, size = size, record_bytes(instance)
                print(f"round {n + 1}: {(size - before) / n_batches / 1e3:,.0f} kB a run of ingest")
            began = time.process_time()
            pruned = prune_records(instance, datetime.now(UTC) + timedelta(minutes=1))
            took = time.process_time() - began
            left = record_bytes(instance)
            each, stays = took / (chosen.rounds * n_batches), (left - empty) / n_batches
            print(f"pruned: {pruned.runs} runs gone, {pruned.logs} logs reduced")
            with recording("retention") as out:
                out.alone("database, a run of ingest", (size - before) / n_batches / 1e3, "kB")
                out.alone("database, stays of a batch", stays / 1e3, "kB")
                out.alone("pruning a run", each * 1e3, "CPU ms")
    if chosen.home:
        by_job(chosen.home)


if __name__ == "__main__":
    main()
