"""What ten thousand batches cost whoever asks what is current: sync, doctor, the sensor, the page.

    python -m benchmarks.partitions [--batches N] [--episodes N] [--keep FOLDER] [--profile]

Makes a store of index lines and sparse archives, and the artifacts that ingest would have written,
in a temporary folder. Two episodes of each batch of the embedded store are ingested; their files
are linked in turn, and their manifests copied with the fingerprint that each batch has. Each line
is a process of its own: CPU seconds, wall seconds, peak memory. ``--profile`` also prints the
functions that took longest.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.lines import recording
from episodes.store import list_store
from stages.batch import FEATURES, INDEX, TENSORS, batch_fingerprint, ingest_batch
from stages.manifest import MANIFEST_FILE
from stages.workspace import Workspace

BATCHES, EPISODES, HOSTS = 10_000, 76_660, 12
FIRST_DAY_MS = 1_672_574_400_000  # 2023-01-01T12:00Z
DAY_MS = 86_400_000
ARCHIVE_BYTES = 130_000
LIMIT_S, LIMIT_MB = 5.0, 1000
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True)
class Cost:
    """Of one process."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    code: int


def ulid(time_ms: int, chance: int) -> str:
    number = (time_ms << 80) | chance
    return "".join(_BASE32[number >> shift & 31] for shift in range(125, -1, -5))


def make_store(root: Path, n_batches: int, n_episodes: int) -> None:
    """Index lines and sparse archives: batches of equal size, a host and a day each."""
    chosen = random.Random(0)
    hosts = [f"lab-{host:02}" for host in range(HOSTS)]
    for host in hosts:
        (root / "episodes" / host).mkdir(parents=True)
    with (root / "index.jsonl").open("w", encoding="utf-8") as index:
        for n in range(n_episodes):
            batch = n * n_batches // n_episodes
            host = hosts[batch % HOSTS]
            episode = ulid(FIRST_DAY_MS + batch // HOSTS * DAY_MS + n, chosen.getrandbits(80))
            path = root / "episodes" / host / f"{episode}.tar.zst"
            path.touch()
            os.truncate(path, ARCHIVE_BYTES)
            row = {
                "episode_id": episode,
                "host_id": host,
                "sha256": f"{chosen.getrandbits(256):064x}",
                "size_bytes": ARCHIVE_BYTES,
                "received_at_wall": "2026-11-21T20:06:07.155Z",
                "schema_version": 1,
            }
            index.write(json.dumps(row, separators=(",", ":")) + "\n")


def make_artifacts(workspace: Workspace, model: Path) -> None:
    """What ingest would have left: links to the files of real batches in turn, and manifests."""
    models = []
    for batch, stored in list_store(Path("data/store")).batches.items():
        made = ingest_batch(stored[:2], model / batch, workspace.validation, workspace.layout)
        models.append(made)
    for n, (batch, listed) in enumerate(workspace.listing().batches.items()):
        identity = batch_fingerprint(listed, workspace.validation, workspace.layout)
        for name, manifest in models[n % len(models)].items():
            folder = workspace.batch_folder(batch) / name
            folder.mkdir(parents=True)
            for file in manifest.files.values():
                os.link(manifest.folder / file["name"], folder / file["name"])
            copy = replace(manifest, folder=folder, fingerprint=identity)
            (folder / MANIFEST_FILE).write_bytes(copy.sealed())


def record(workspace: Workspace) -> None:
    """One materialization of each output of each batch in Dagster's records, in bulk."""
    import dagster as dg
    import sqlalchemy as sa
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events

    from pipelines.home import dagster_instance

    batches = list(workspace.listing().batches)
    with dagster_instance(workspace) as instance:
        for name in (INDEX, TENSORS, FEATURES):
            metadata: dict[str, Any] = {
                "bytes": 1,
                "path": dg.MetadataValue.path("x" * 60),
                "seconds": 1.0,
            }
            instance.report_runless_asset_event(
                dg.AssetMaterialization(name, partition=batches[0], metadata=metadata)
            )
            with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
                key = dg.AssetKey(name).to_string()
                row = connection.execute(
                    sa.select(Events).where(Events.c.asset_key == key).limit(1)
                ).mappings().one()  # fmt: skip
                rest = [
                    {
                        **{k: v for k, v in row.items() if k != "id"},
                        "partition": batch,
                        "event": row["event"].replace(batches[0], batch),
                    }
                    for batch in batches[1:]
                ]
                connection.execute(sa.insert(Events), rest)


def forget_partitions(workspace: Workspace) -> None:
    """Of an earlier measurement: every batch is new to Dagster again."""
    import sqlalchemy as sa
    from dagster._core.storage.event_log.schema import DynamicPartitionsTable

    from pipelines.home import dagster_instance

    with (
        dagster_instance(workspace) as instance,
        instance.event_log_storage.index_connection() as connection,  # type: ignore[attr-defined]
    ):
        connection.execute(sa.delete(DynamicPartitionsTable))


# --- what is measured


def tick(workspace: Workspace) -> None:
    """One evaluation of the sensor."""
    import dagster as dg

    from pipelines.automation import new_batches
    from pipelines.home import dagster_instance
    from resources.workspace import resource_of

    resources = {"workspace": resource_of(workspace)}
    with (
        dagster_instance(workspace) as instance,
        dg.build_sensor_context(instance=instance, resources=resources) as context,
    ):
        result: Any = new_batches(context)
    print(f"      {len(result.run_requests or ())} requests; {result.skip_reason}")


def staleness(workspace: Workspace) -> None:
    """What every job would change."""
    from stages.project import Project

    project = Project(workspace)
    due = project.due("ingest")
    print(f"      {len(project.recipes)} recipes")
    if due:
        raise RuntimeError(f"every batch must be current; {due[0].statuses[0].line}")


def listing(workspace: Workspace) -> None:
    print(f"      {len(workspace.listing().batches)} batches")


def sync(workspace: Workspace) -> None:
    from pipelines.cli.execution import sync_only

    print(f"      {len(sync_only(workspace).listing.batches)} batches")


def doctor(workspace: Workspace) -> None:
    from pipelines.cli.doctor import doctor as diagnose

    found = diagnose(store=Path(workspace.store), artifacts=Path(workspace.artifacts))
    print(f"      {len(found.problems)} problems")


STEPS = {"listing": listing, "staleness": staleness, "sensor tick": tick}
PROFILED = STEPS | {"sync": sync, "doctor": doctor}

PAGE = """
query Page($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      id
      partitionKeysByDimension { name partitionKeys type }
      assetPartitionStatuses {
        ... on DefaultPartitionStatuses {
          materializedPartitions failedPartitions unmaterializedPartitions materializingPartitions
        }
      }
      partitionStats { numMaterialized numPartitions numFailed numMaterializing }
    }
  }
}
"""
"""What the partitions page of an asset asks."""


def page(workspace: Workspace) -> dict[str, float]:
    """Seconds of the partitions page, from a web server of its own: a first and a second time."""
    seconds = {}
    environ = os.environ | {
        "DAGSTER_HOME": str(workspace.artifacts_path / "dagster_home"),
        "PHASEWATCH_STORE": workspace.store,
        "PHASEWATCH_ARTIFACTS": workspace.artifacts,
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dagster_webserver", "-m", "pipelines.definitions"]
    with subprocess.Popen(
        [*command, "-p", str(port)],
        env=environ,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as server:
        try:
            body = {"query": PAGE, "variables": {"key": {"path": [TENSORS]}}}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/graphql",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            until = time.monotonic() + 240
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                if time.monotonic() > until:
                    raise RuntimeError("the web server does not start")
                time.sleep(0.5)
            for which in ("first", "again"):
                began = time.monotonic()
                with urllib.request.urlopen(request, timeout=240) as answer:
                    text = answer.read()
                seconds[which] = time.monotonic() - began
                found = json.loads(text)["data"]["assetNodeOrError"]["partitionStats"]
                print(f"  {len(text) / 1e6:.1f} MB, {found}")
        finally:
            server.terminate()
    return seconds


_LAUNCHER = """
import json, os, sys, time
began = time.monotonic()
if (child := os.fork()) == 0:
    os.dup2(2, 1)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(child, 0)
print(json.dumps([used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1000,
                  os.waitstatus_to_exitcode(status)]))
"""
"""A process starts with the peak memory of the one that it was forked from: so from a small one."""


def measured(command: list[str]) -> Cost:
    """Run a process to its end."""
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, *command]
    told = subprocess.run(launcher, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return Cost(*json.loads(told.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--keep", type=Path, help="make it here, or use what is here")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", choices=PROFILED, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    root = chosen.keep or Path(tempfile.mkdtemp(prefix="partitions-"))
    workspace = Workspace(store=str(root / "store"), artifacts=str(root / "artifacts"))
    if chosen.only:
        profile = cProfile.Profile()
        function = PROFILED[chosen.only]
        if chosen.profile:
            profile.runcall(function, workspace)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(28)
        else:
            function(workspace)
            sys.stdout.flush()
            os._exit(0)  # taking a million objects apart is no part of what is measured
        return
    try:
        _run(root, workspace, chosen)
    finally:
        if not chosen.keep:
            shutil.rmtree(root)


def _run(root: Path, workspace: Workspace, chosen: argparse.Namespace) -> None:
    asked = f"{chosen.batches} batches of {chosen.episodes} episodes"
    if not (root / "made").exists():
        make_store(root / "store", chosen.batches, chosen.episodes)
        make_artifacts(workspace, root / "model")
        record(workspace)
        (root / "made").write_text(asked, encoding="utf-8")
    if (kept := (root / "made").read_text(encoding="utf-8")) != asked:
        sys.exit(f"{root}: must have {asked}, got {kept or 'what an older version made'}")
    forget_partitions(workspace)
    paths = ["--store", workspace.store, "--artifacts", workspace.artifacts]
    program = [sys.executable, "-m", "pipelines.cli.app"]
    step = [sys.executable, "-m", "benchmarks.partitions", "--keep", str(root), "--only"]
    lines = {
        "phasewatch --version": [*program, "--version"],
        "sync, all new": [*program, "sync", *paths],
        "sync, none new": [*program, "sync", *paths],
        "doctor": [*program, "doctor", *paths],
        **{name: [*step, name] for name in STEPS},
    }
    with recording("partitions") as out:
        for name, command in lines.items():
            cost = measured(command)
            if cost.code not in (0, 1):  # 1: doctor has something to say
                raise RuntimeError(f"{name} ended with {cost.code}")
            out.limit(name, cost.cpu_s, LIMIT_S, "CPU s", size=chosen.batches)
            out.limit(f"{name}: memory", cost.peak_mb, LIMIT_MB, "MB", size=chosen.batches)
        for which, seconds in page(workspace).items():
            out.limit(f"partitions page, {which}", seconds, LIMIT_S, "s", size=chosen.batches)
    if chosen.profile:
        for name in PROFILED:
            print(f"\n{name}", flush=True)
            subprocess.run([*step, name, "--profile"], check=True)


if __name__ == "__main__":
    main()
