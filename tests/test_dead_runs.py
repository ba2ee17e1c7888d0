"""Runs that count as under way and have no process: killed at every moment, ended at every sync."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
from builders import StoreBuilder
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from lab import TINY, Lab, new_instance
from typer.testing import CliRunner

from pipelines.automation import new_batches
from pipelines.cli.app import app
from pipelines.definitions import build_defs
from pipelines.partitions import sync_batches
from resources.runs import PROCESS_TAG, START_S, dead_runs, end_dead_runs, process_tag
from resources.workspace import resource_of

ROOT = Path(__file__).parent.parent
Status = dg.DagsterRunStatus

KILLED = """
import os, signal, sys
from dagster._core.storage.runs import SqlRunStorage
import pipelines.definitions, pipelines.cli.execution, pipelines.notifications
import resources.runs, resources.workspace, stages.ingest
from pipelines.cli.app import app

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def dies_after(owner, name):
    real = getattr(owner, name)
    def then_die(*args, **named):
        real(*args, **named)
        die()
    setattr(owner, name, then_die)

def canceled(run, instance):
    instance.report_run_canceling(run)
    die()

MOMENTS = {
    "recorded": lambda: dies_after(SqlRunStorage, "add_run"),
    "begun": lambda: setattr(resources.workspace, "writing_for", die),
    "canceling": lambda: setattr(resources.workspace, "writing_for", canceled),
    "working": lambda: setattr(stages.ingest, "ingest_batch", die),
    "ended": lambda: setattr(pipelines.notifications, "notify_of_run", die),
}
for moment in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        for name in ("DAGSTER_HOME", "PHASEWATCH_ARTIFACTS"):
            os.environ[name] += "/" + moment
        MOMENTS[moment]()
        try:
            app(["run", "--ingest-only"])
        finally:
            os._exit(3)
    print(moment, os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Lab]:
    store = StoreBuilder(tmp_path / "store")
    store.populate(hosts=["lab-a"], profiles=["io-walk"], duration_s=20)
    with new_instance(tmp_path / "home") as instance:
        yield Lab(store, tmp_path / "artifacts", instance, TINY)


def recorded(lab: Lab, status: Status, **tags: str) -> str:
    """The id of a run of the lab's batch that is in a state and does nothing."""
    definition = build_defs(workspace=lab.workspace).resolve_job_def("ingest")
    (batch,) = lab.workspace.listing().batches
    tags = {"dagster/partition": batch} | tags
    location = RegisteredCodeLocationOrigin("phasewatch")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "ingest")
    run = lab.instance.create_run_for_job(
        definition, status=status, tags=tags, remote_job_origin=origin,
    )  # fmt: skip
    return run.run_id


def aged(lab: Lab, run_id: str, seconds: float) -> None:
    """Have a record be so old."""
    (database,) = Path(lab.instance.root_directory).rglob("runs.db")
    with closing(sqlite3.connect(database)) as runs, runs:
        for column in ("create_timestamp", "update_timestamp"):
            moved = f"UPDATE runs SET {column} = datetime({column}, ?) WHERE run_id = ?"
            runs.execute(moved, (f"-{seconds} seconds", run_id))


def requested(lab: Lab) -> list[str]:
    """What a tick of the sensor requests."""
    resources = {"workspace": resource_of(lab.workspace)}
    with dg.build_sensor_context(instance=lab.instance, resources=resources) as context:
        result = new_batches(context)
    assert isinstance(result, dg.SensorResult)
    return [str(request.partition_key) for request in result.run_requests or ()]


def status(lab: Lab, run_id: str) -> Status:
    run = lab.instance.get_run_by_id(run_id)
    assert run
    return run.status


@pytest.mark.slow
def test_a_command_killed_at_any_moment_leaves_no_run_under_way(small: Lab, tmp_path: Path) -> None:
    moments = {
        "recorded": (Status.NOT_STARTED, Status.FAILURE),
        "begun": (Status.STARTED, Status.FAILURE),
        "canceling": (Status.CANCELING, Status.CANCELED),
        "working": (Status.STARTED, Status.FAILURE),
        "ended": (Status.SUCCESS, Status.SUCCESS),
    }
    home = tmp_path / "homes"
    environment = os.environ | {
        "DAGSTER_HOME": str(home),
        "PHASEWATCH_STORE": str(small.store.root),
        "PHASEWATCH_ARTIFACTS": str(small.artifacts),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *moments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [word for moment in moments for word in (moment, "9")]
    for moment, (left, after) in moments.items():
        with dg.DagsterInstance.from_config(str(home / moment)) as instance:
            lab = Lab(small.store, small.artifacts / moment, instance, TINY)
            run = instance.get_runs()[0]
            assert run.status is left, moment
            synced = sync_batches(instance, lab.workspace)
            assert synced.ended == ([run.run_id] if left is not after else []), moment
            assert status(lab, run.run_id) is after, moment
            assert sync_batches(instance, lab.workspace).ended == []
            if after is not Status.SUCCESS:
                assert requested(lab), moment  # ingested again: nothing is in the way


@pytest.mark.parametrize(
    ("left", "after"),
    [
        (Status.NOT_STARTED, Status.FAILURE),
        (Status.STARTING, Status.FAILURE),
        (Status.STARTED, Status.FAILURE),
        (Status.CANCELING, Status.CANCELED),
        (Status.QUEUED, Status.QUEUED),  # Dagster's daemon takes it up whenever it runs
    ],
)
def test_a_run_that_no_process_takes_up_is_ended(small: Lab, left: Status, after: Status) -> None:
    sync_batches(small.instance, small.workspace)
    run = recorded(small, left)
    assert end_dead_runs(small.instance) == []
    assert requested(small) == []
    aged(small, run, START_S + 1)
    ended = [] if left is after else [run]
    assert [dead.run.run_id for dead in dead_runs(small.instance)] == ended
    assert end_dead_runs(small.instance) == ended
    assert status(small, run) is after
    assert bool(requested(small)) == bool(ended)


def test_a_process_is_told_from_those_that_came_before_it(small: Lab) -> None:
    run = recorded(small, Status.STARTED)
    (mine,) = process_tag(run).values()
    _, host, boot, pid, start = mine.split(":")
    assert (host, pid) == (socket.gethostname(), str(os.getpid()))

    def is_ended(tag: str) -> bool:
        small.instance.add_run_tags(run, {PROCESS_TAG: tag})
        return bool(dead_runs(small.instance))

    assert not is_ended(mine)
    assert is_ended(f"{run}:{host}:{boot}:{pid}:{int(start) + 1}")  # the pid was given again
    assert is_ended(f"{run}:{host}:00000000:{pid}:{start}")  # the machine was booted again
    for unknown in (mine.replace(run, "another"), f"{run}:{host}", f"{run}:{host}:x:y:z", ""):
        assert not is_ended(unknown)  # copied from the run that it repeats, or written by hand
        aged(small, run, START_S + 1)
        assert dead_runs(small.instance)


def test_a_run_of_another_machine_is_ended_after_its_longest_time(small: Lab) -> None:
    runs = [recorded(small, Status.STARTED) for _ in range(2)]
    for run in runs:
        small.instance.add_run_tags(run, {PROCESS_TAG: f"{run}:elsewhere:00000000:1:1"})
    small.instance.add_run_tags(runs[1], {"dagster/max_runtime": "90000"})
    for run in runs:
        aged(small, run, 86_000)
    assert dead_runs(small.instance) == []
    for run in runs:
        aged(small, run, 1000)
    assert [dead.run.run_id for dead in dead_runs(small.instance)] == [runs[0]]
    aged(small, runs[1], 4000)
    assert end_dead_runs(small.instance) == runs[::-1]


def test_places_of_runs_that_ended_are_free(small: Lab) -> None:
    """A kill between the end of a run and the end of its place would keep it for ever."""
    storage = small.instance.event_log_storage
    storage.set_concurrency_slots("training", 1)
    ended, alive = recorded(small, Status.FAILURE), recorded(small, Status.STARTED)
    assert storage.claim_concurrency_slot("training", ended, "step").is_claimed
    assert not storage.claim_concurrency_slot("training", alive, "step").is_claimed
    assert end_dead_runs(small.instance) == []
    assert storage.claim_concurrency_slot("training", alive, "step").is_claimed
    assert end_dead_runs(small.instance) == []
    assert storage.get_concurrency_info("training").active_run_ids == {alive}


def test_sync_says_which_runs_it_ended(
    small: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded(small, Status.STARTED)
    aged(small, run, START_S + 1)
    monkeypatch.setenv("DAGSTER_HOME", small.instance.root_directory)
    store, artifacts = str(small.store.root), str(small.artifacts)
    with pytest.raises(SystemExit) as end:
        app(["sync", "--json", "--store", store, "--artifacts", artifacts])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["ended"] == [run]


def test_doctor_waits_for_a_run_that_is_alive_and_for_no_other(
    small: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(small.instance.root_directory)
    (home / "dagster.yaml").write_text((ROOT / "config" / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(home))

    def remedy() -> str:
        paths = ["--store", str(small.store.root), "--artifacts", str(small.artifacts)]
        problems = json.loads(CliRunner().invoke(app, ["doctor", "--json", *paths]).stdout)
        found = problems["problems"]
        return next(p["remedy"] for p in found if p["problem"].startswith("not current"))

    recorded(small, Status.QUEUED)  # there is no daemon that would take it up
    assert remedy().startswith("phasewatch run")
    alive = recorded(small, Status.STARTED)
    small.instance.add_run_tags(alive, process_tag(alive))
    assert remedy().startswith("wait for the runs under way (ingest lab-a.")
