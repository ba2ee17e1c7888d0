"""Trainings and runs side by side: what comes of them is what comes of one at a time."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path

import dagster as dg
import pytest
from lab import HAD, RECIPE, ROOT, Lab
from typer.testing import CliRunner

from episodes.environment import MachineError
from models.registry import VARIANTS
from pipelines.cli.app import app
from pipelines.cli.console import FAILED, INTERRUPTED, OK, log_to_stderr
from stages.project import Project
from stages.workers import training_ahead, trainings_at_a_time, worker_processes
from stages.workspace import Workspace


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_checkpoints_trained_side_by_side_are_those_trained_alone(retrained: Lab) -> None:
    workspace = retrained.workspace.model_copy(update={"force": True})
    folder = workspace.checkpoint_folder(RECIPE)
    alone = contents(folder)
    project = Project(workspace)
    with training_ahead(workspace, 2, log_to_stderr):
        for variant in VARIANTS:
            made = project.make(project.stages[f"checkpoints/{variant.name}"], RECIPE)
            assert not made.reused
    assert contents(folder) == alone


@pytest.mark.parametrize(
    ("cores", "threads", "device", "expected"),
    [(1, 1, "cpu", 1), (2, 1, "cpu", 2), (4, 2, "cpu", 2), (2, 4, "cpu", 1), (8, 1, "cuda", 1)],
)
def test_as_many_are_trained_as_there_are_cores(
    cores: int, threads: int, device: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.workers.cores", lambda: cores)
    workspace = Workspace.model_validate(
        {"device": device, "models": {"gru": {"n_threads": threads}}}
    )
    assert trainings_at_a_time(workspace) == expected


def killed_while_it_sends(rest: int) -> None:
    """Have this process killed once a part of a result is sent."""
    send_all = Connection._send

    def send(connection: Connection, content: bytes) -> None:
        if len(content) > rest:
            os.write(connection.fileno(), content[:-rest])
            os.kill(os.getpid(), signal.SIGKILL)
        send_all(connection, content)

    Connection._send = send


@pytest.mark.parametrize("rest", [1, 500_000])
def test_a_worker_that_is_killed_while_it_sends_is_not_waited_for(rest: int) -> None:
    def wait() -> None:
        with worker_processes(2, killed_while_it_sends, rest) as pool:
            waiting = [pool.submit(bytes, 1_000_000) for _ in range(3)]
            for future in waiting:
                with pytest.raises(BrokenProcessPool):
                    future.result(60)
            waiting[0].result()

    with pytest.raises(MachineError, match="killed"):
        wait()


@pytest.mark.long
def test_recipes_are_retrained_side_by_side(
    retrained: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("stages.workers.cores", lambda: 2)
    monkeypatch.setenv("DAGSTER_HOME", retrained.instance.root_directory)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"resources": {"workspace": {"config": retrained.settings}}}))
    paths = ["--store", str(retrained.store.root), "--artifacts", str(retrained.artifacts)]
    two = [RECIPE, next(recipe for recipe in HAD if recipe != RECIPE)]
    shutil.rmtree(retrained.artifacts / "reports" / RECIPE)  # the rest of it is current
    words = [word for recipe in two for word in ("--recipe", recipe)]
    result = CliRunner().invoke(app, ["run", "--json", "--config", str(config), *paths, *words])
    assert result.exit_code == OK, result.output
    ran = json.loads(result.stdout)["runs"]
    assert {run["partition"] for run in ran if run["partition"]} == set(two)
    finished = {run.run_id for run in retrained.instance.get_runs(
        filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])
    )}  # fmt: skip
    assert {run["run_id"] for run in ran} <= finished
    due = Project(retrained.workspace).due("retrain", verify=True)
    assert {status.key for status in due} == set(HAD) - set(two)


@pytest.mark.parametrize("cores", [1, 2])
def test_a_run_that_fails_names_what_was_not_reached(
    ingested: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: int
) -> None:
    monkeypatch.setattr("stages.workers.cores", lambda: cores)
    monkeypatch.setenv("DAGSTER_HOME", ingested.instance.root_directory)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"resources": {"workspace": {"config": ingested.settings}}}))
    in_the_way = ingested.artifacts / "datasets"
    in_the_way.write_text("a file where a folder is to be")
    paths = ["--store", str(ingested.store.root), "--artifacts", str(ingested.artifacts)]
    recipes = [word for recipe in HAD for word in ("--recipe", recipe)]
    result = CliRunner().invoke(app, ["run", "--json", "--config", str(config), *paths, *recipes])
    assert result.exit_code == FAILED, result.output
    document = json.loads(result.stdout)
    left = document["not_reached"]
    assert {f"checkpoints/gbt_oracle {HAD[0]}", f"comparisons {HAD[0]}"} <= set(left)
    assert f"datasets {HAD[0]}" not in left  # it was reached, and failed
    assert [name for name in left if " " not in name or name.startswith("retrain ")] == [
        *(f"retrain {recipe}" for recipe in HAD[cores:]), "report",
    ]  # fmt: skip
    assert document["error"].count("failed (run ") == cores  # those under way at the same time
    command = document["error"].splitlines()[-1].partition(": ")[2]
    assert command.startswith("phasewatch run ")
    in_the_way.unlink()
    words = shlex.split(command.removeprefix("phasewatch "))
    assert words[-len(recipes) :] == recipes


TWO_WORKERS = """
import stages.workers
stages.workers.cores = lambda: 2
from pipelines.cli.app import main
main()
"""


def test_ctrl_c_while_nets_are_trained_ends_the_command_soon(ingested: Lab, tmp_path: Path) -> None:
    endless = ingested.settings["models"] | {
        "cnn": {"width": 8, "epochs": 10_000, "patience": 10_000}
    }
    settings = ingested.settings | {"models": endless}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"resources": {"workspace": {"config": settings}}}))
    paths = ["--store", str(ingested.store.root), "--artifacts", str(ingested.artifacts)]
    process = subprocess.Popen(
        [sys.executable, "-c", TWO_WORKERS, "run", "--recipe", RECIPE, "--config", config, *paths],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"DAGSTER_HOME": ingested.instance.root_directory},
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        while not process.stderr.readline().startswith("checkpoints/cnn"):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, told = process.communicate(timeout=30)  # the net would be trained for minutes
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert (process.returncode, told.splitlines()[-1]) == (INTERRUPTED, "interrupted"), told
