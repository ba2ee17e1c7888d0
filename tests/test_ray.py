"""The graph on two nodes of a Ray cluster, its records in PostgreSQL: what operations.md promises.

    make ray

Takes minutes. Skipped where the extra ``ray`` or Debian's ``postgresql`` is not installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from e2e import DRIFT, ROOT, SCORE, Lab, until
from lab import POSTGRES, postgresql

from models.checkpoint import read_header
from resources.runs import PROCESS_TAG

MISSING = "the extra `ray` is not installed: make ray"
pytest.importorskip("dagster_ray", reason=MISSING)
pytest.importorskip("dagster_postgres", reason=MISSING)
psycopg2 = pytest.importorskip("psycopg2", reason=MISSING)
cluster_utils = pytest.importorskip("ray.cluster_utils", reason=MISSING)
job_submission = pytest.importorskip("ray.job_submission", reason=MISSING)
pytestmark = pytest.mark.skipif(
    POSTGRES is None, reason="no PostgreSQL server on this machine: apt-get install postgresql"
)
RECIPE = "host"
BATCH = "lab-a.2026-11-02"


@contextmanager
def two_nodes(environ: dict[str, str]) -> Iterator[str]:
    """A Ray cluster whose nodes have room for one step each; its job server's address.

    The nodes have the environment but for phasewatch's own part, which goes with each step.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
            if name.startswith("PHASEWATCH_"):
                patch.delenv(name)
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        cluster = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": True, "dashboard_port": port},
        )
        try:
            cluster.add_node(num_cpus=2)
            yield f"http://127.0.0.1:{port}"
        finally:
            cluster.shutdown()


@dataclass
class Machines:
    """A lab whose commands run on the cluster."""

    lab: Lab
    database: str
    alone: Path  # artifacts of the same work on one machine
    client: Any  # of Ray's job server

    def words(self, job: str, partition: str) -> tuple[str, ...]:
        """What follows ``dagster``."""
        tags = json.dumps({"dagster/partition": partition})
        named = ("-m", "pipelines.definitions", "-j", job, "--tags", tags)
        return ("job", "execute", *named, "-c", str(ROOT / "config/ray.yaml"))

    def execute(self, job: str, partition: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run a job on the cluster, to its end."""
        return self.lab.command("dagster", *self.words(job, partition), *more)

    def jobs(self, job: str) -> list[Any]:
        """What Ray ran for the steps of a job."""
        return [j for j in self.client.list_jobs() if j.metadata["dagster/job"] == job]

    def ask(self, query: str) -> list[Any]:
        """Rows of the first column."""
        with (
            psycopg2.connect(self.database.replace("+psycopg2", "")) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(query)
            return [row[0] for row in cursor.fetchall()]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """One retrain on one machine, and the same on two."""
    lab = Lab(tmp_path_factory.mktemp("ray"), models=("gbt",))
    done = lab.command("phasewatch", "run", "--recipe", RECIPE)
    assert done.returncode == 0, done.stderr
    alone, lab.artifacts = lab.artifacts, lab.artifacts.with_name("shared")
    for ingested in ("batches", "contracts"):
        shutil.copytree(alone / ingested, lab.artifacts / ingested)
    home = lab.tree.with_name("shared_home")
    home.mkdir()
    page = (ROOT / "docs/operations.md").read_text()
    (storage,) = re.findall(r"```yaml\n( *storage:.*?)```", page, re.DOTALL)
    settings = (ROOT / "config/dagster.yaml").read_text() + textwrap.dedent(storage)
    (home / "dagster.yaml").write_text(settings)
    with (
        tempfile.TemporaryDirectory(prefix="pg-") as sockets,  # their paths have to be short
        tempfile.TemporaryDirectory(prefix="ray-") as sessions,
        postgresql(Path(sockets)) as database,
    ):
        lab.env |= {
            "DAGSTER_HOME": str(home),
            "DAGSTER_PG_URL": database,
            "PHASEWATCH_ARTIFACTS": str(lab.artifacts),
            "RAY_TMPDIR": sessions,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with two_nodes(lab.env) as address:
            lab.env["RAY_ADDRESS"] = address
            machines = Machines(lab, database, alone, job_submission.JobSubmissionClient(address))
            limit = ("concurrency", "set", "training", "1")
            done = lab.command("dagster", "instance", *limit)
            assert done.returncode == 0, done.stderr
            done = machines.execute("retrain", RECIPE)
            assert done.returncode == 0, done.stderr[-5000:]
            yield machines


def test_steps_run_on_both_nodes(machines: Machines) -> None:
    jobs = machines.jobs("retrain")
    assert {"datasets", "report"} <= {job.metadata["dagster/op"] for job in jobs}
    assert len({job.driver_node_id for job in jobs}) == 2


def test_the_records_are_in_postgresql(machines: Machines) -> None:
    made = machines.ask(
        "SELECT asset_key FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
    )
    assert {"/".join(json.loads(key)) for key in made} == {
        "datasets",
        "checkpoints/gbt_oracle",
        "checkpoints/gbt_realistic",
        "likeness/oracle",
        "likeness/realistic",
        "held_out_predictions",
        "alarm_rules/gbt_oracle",
        "alarm_rules/gbt_realistic",
        "eval_reports/gbt_oracle",
        "eval_reports/gbt_realistic",
        "comparisons",
        "report",
    }
    assert machines.ask("SELECT status FROM runs") == ["SUCCESS"]
    assert not list(Path(machines.lab.env["DAGSTER_HOME"]).rglob("*.db"))


def test_the_artefacts_are_those_of_one_machine(machines: Machines) -> None:
    """A file's name carries its hash, a checkpoint's header that of its sidecar."""
    shared, alone = (
        {
            path.relative_to(root)
            for path in root.rglob("*")
            if not path.is_relative_to(root / "cache")
        }
        for root in (machines.lab.artifacts, machines.alone)
    )
    assert shared == alone
    for variant in ("gbt_oracle", "gbt_realistic"):
        header = f"checkpoints/{RECIPE}/{variant}.ckpt.json"
        assert read_header(machines.lab.artifacts / header) == read_header(machines.alone / header)


def test_no_more_train_at_once_than_the_pool_allows(machines: Machines) -> None:
    """With the limit of the settings, two, the second would start before the first has ended."""
    order = machines.ask(
        "SELECT dagster_event_type FROM event_logs "
        "WHERE step_key IN ('checkpoints__gbt_oracle', 'checkpoints__gbt_realistic') "
        "AND dagster_event_type IN ('STEP_WORKER_STARTING', 'STEP_SUCCESS') ORDER BY id"
    )
    assert order == ["STEP_WORKER_STARTING", "STEP_SUCCESS"] * 2


def test_a_killed_command_is_found(machines: Machines) -> None:
    """No step of it runs in its process, and nobody watches it."""
    words = [sys.executable, "-m", "dagster", *machines.words("retrain", RECIPE)]
    lab = machines.lab
    process = subprocess.Popen(words, cwd=lab.tree, env=lab.env, stderr=subprocess.DEVNULL)
    newest = "ORDER BY id DESC LIMIT 1"
    try:
        noted = f"SELECT value FROM run_tags WHERE key = '{PROCESS_TAG}' {newest}"
        until(lambda: f":{process.pid}:" in machines.ask(noted)[0], "the run is under way", 60)
    finally:
        process.kill()
        process.wait()
    status = f"SELECT status FROM runs {newest}"
    assert machines.ask(status) == ["STARTED"]
    assert lab.command("phasewatch", "sync").returncode == 0
    assert machines.ask(status) == ["FAILURE"]


def test_a_refusal_on_a_node_fails_the_command(machines: Machines) -> None:
    machines.lab.drift()
    score = machines.lab.tree / "score.yaml"
    score.write_text(json.dumps(SCORE))
    refused = machines.execute("score", BATCH, "-c", str(score))
    assert refused.returncode != 0
    assert DRIFT in refused.stdout + refused.stderr
    assert [job.metadata["dagster/op"] for job in machines.jobs("score")] == ["predictions"]
