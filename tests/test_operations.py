"""Growth and nights: what is requested, what waits and why, and what a killed run leaves."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from builders import PROFILES, START_NS, StoreBuilder
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.partitions.context import partition_loading_context
from lab import RECIPE, TINY, Lab, failure, materialized, new_instance, put_in_use
from typer.testing import CliRunner, Result

from assets.factory import asset_key, asset_keys
from assets.partitions import BATCHES
from champion.history import BEFORE_SEALS, read_history
from features.files import write_atomically
from models.registry import VARIANTS
from pipelines.automation import new_batches, nightly
from pipelines.cli.app import FAILED, USAGE, app, main
from pipelines.cli.console import INTERRUPTED
from pipelines.executors import build_executor, execution_from_environment
from pipelines.graph import build_defs
from pipelines.partitions import sync_batches
from pipelines.requests import MAX_FAILURES
from resources.runs import ASKED_S, PROCESS_TAG, end_dead_runs, writing_for
from resources.workspace import resource_of
from stages.workspace import MACHINE_SETTINGS, checked_workspace, read_workspace

ROOT = Path(__file__).parent.parent
INGESTED = [key for key in asset_keys("ingest") if key != asset_key("drift")]
"""What is asked for of a batch while there is no champion to compare it with."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Lab]:
    """Three hosts with an episode each: a batch each, and nothing ingested."""
    store = StoreBuilder(tmp_path / "store")
    store.populate(profiles=["io-walk"], duration_s=20)
    with new_instance(tmp_path / "home") as instance:
        yield Lab(store, tmp_path / "artifacts", instance, TINY)


def tick(lab: Lab) -> dg.SensorResult:
    """One evaluation of the sensor."""
    resources = {"workspace": resource_of(lab.workspace)}
    with dg.build_sensor_context(instance=lab.instance, resources=resources) as context:
        result = new_batches(context)
    assert isinstance(result, dg.SensorResult)
    return result


def night(lab: Lab, later: timedelta = timedelta()) -> Any:
    """One tick of the nightly schedule."""
    with dg.build_schedule_context(
        instance=lab.instance,
        scheduled_execution_time=datetime.now(UTC) + later,
        resources={"workspace": resource_of(lab.workspace)},
    ) as context:
        return nightly(context)


def run(lab: Lab, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    """Run what was requested, as the daemon would."""
    assert request.partition_key
    return lab.execute("ingest", request.partition_key, tags=dict(request.tags))


def under_way(lab: Lab, job: str, partition: str) -> dg.DagsterRun:
    """A run that is counted as started and does nothing."""
    definition = build_defs(workspace=lab.workspace).resolve_job_def(job)
    return lab.instance.create_run_for_job(
        definition, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": partition}
    )


def requested(result: dg.SensorResult) -> list[str]:
    return sorted(str(r.partition_key) for r in result.run_requests or ())


# --- growth


def test_the_sensor_registers_and_requests_what_is_stale(small: Lab) -> None:
    batches = list(small.workspace.listing().batches)
    first = tick(small)
    assert requested(first) == batches
    assert set(small.instance.get_dynamic_partitions(str(BATCHES.name))) == set(batches)
    again = tick(small)
    assert [r.run_key for r in again.run_requests or ()] == [
        r.run_key for r in first.run_requests or ()
    ]
    for request in first.run_requests or ():
        assert run(small, request).success
    assert tick(small).skip_reason == dg.SkipReason("all 3 batches are current")

    late = small.store.add("lab-b", profile="io-walk", duration_s=20, start_ns=START_NS + 1)
    assert requested(tick(small)) == [small.workspace.listing().find(late.episode_id).batch]


def test_a_batch_whose_run_is_under_way_is_not_requested_again(small: Lab) -> None:
    tick(small)
    batch, *others = small.workspace.listing().batches
    started = under_way(small, "ingest", batch)
    assert requested(tick(small)) == others
    small.instance.report_run_canceled(started)
    assert requested(tick(small)) == [batch, *others]


def test_a_lost_artefact_is_requested_anew(small: Lab) -> None:
    first = tick(small).run_requests or []
    for request in first:
        assert run(small, request).success
    shutil.rmtree(small.workspace.batch_folder(str(first[0].partition_key)))
    (again,) = tick(small).run_requests or []
    assert again.partition_key == first[0].partition_key
    assert again.run_key != first[0].run_key


def test_a_failing_batch_is_given_up_until_it_changes_or_a_person_mends_it(small: Lab) -> None:
    small.store.add("lab-d", profile="io-walk", duration_s=20)
    batch = list(small.workspace.listing().batches)[-1]
    for request in tick(small).run_requests or ():
        if request.partition_key != batch:
            assert run(small, request).success
    in_the_way = small.workspace.batch_folder(batch)
    in_the_way.write_text("a file where a folder has to be")
    keys = []
    for _ in range(MAX_FAILURES):
        (request,) = tick(small).run_requests or []
        keys.append(request.run_key)
        assert not run(small, request).success
    assert len(set(keys)) == MAX_FAILURES
    assert f"ingest {batch}: gave up after 3 failed runs" in str(tick(small).skip_reason)
    assert f"ingest {batch}: gave up after 3 failed runs" in str(night(small))

    small.store.add("lab-d", profile="io-walk", duration_s=20)
    assert requested(tick(small)) == [batch]
    in_the_way.unlink()
    assert small.execute("ingest", batch).success
    assert "current" in str(tick(small).skip_reason)


def test_an_arriving_episode_is_ingested_once_it_is_whole(small: Lab) -> None:
    added = small.store.added[0]
    whole = added.path.read_bytes()
    added.path.write_bytes(whole[:100])
    for request in tick(small).run_requests or ():
        assert run(small, request).success
    added.path.write_bytes(whole[:200])
    assert "current" in str(tick(small).skip_reason)
    added.path.write_bytes(whole)
    assert requested(tick(small)) == [small.workspace.listing().find(added.episode_id).batch]


def test_during_a_training_new_batches_are_ingested_and_changed_ones_wait(small: Lab) -> None:
    small.ingest()
    changed = small.store.add("lab-b", profile="io-walk", duration_s=20)
    small.store.add("lab-d", profile="io-walk", duration_s=20)
    training = under_way(small, "retrain", RECIPE)
    assert [batch.rsplit(".", 1)[0] for batch in requested(tick(small))] == ["lab-d"]
    small.instance.report_run_canceled(training)
    assert small.workspace.listing().find(changed.episode_id).batch in requested(tick(small))


# --- scoring


def run_score(lab: Lab, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    assert request.partition_key
    return lab.execute("score", request.partition_key, tags=dict(request.tags))


def jobs_of(result: dg.SensorResult) -> dict[str, list[str]]:
    """Job -> batches that it is requested for."""
    found: dict[str, list[str]] = {}
    for request in result.run_requests or ():
        found.setdefault(str(request.job_name), []).append(str(request.partition_key))
    return {job: sorted(batches) for job, batches in found.items()}


def settle(lab: Lab) -> None:
    """Run what the sensor requests, as the daemon would, until it requests nothing."""
    while requests := tick(lab).run_requests:
        for request in requests:
            done = run(lab, request) if request.job_name == "ingest" else run_score(lab, request)
            assert done.success, failure(done)


def test_the_champion_scores_new_batches_and_those_that_changed(retrained: Lab) -> None:
    lab = retrained
    batches = list(lab.workspace.listing().batches)
    assert str(tick(lab).skip_reason) == str(dg.SkipReason("all 3 batches are current"))

    put_in_use(lab, "gbt")
    settle(lab)  # drift of every batch is made first, and then it is scored
    champion = lab.project.champion
    assert champion is not None
    for batch in batches:
        scored = lab.project.artifact("predictions", batch).facts
        assert scored["checkpoint_id"] == champion.checkpoints[champion.served]
        assert lab.recorded("predictions", batch)["checkpoint_id"] == scored["checkpoint_id"]
    assert "scored with gbt_realistic" in str(tick(lab).skip_reason)

    lab.store.add("lab-b", profile="io-walk", duration_s=20)
    lab.store.add("lab-d", profile="io-walk", duration_s=20)
    two = [batches[1], batches[0].replace("lab-a", "lab-d")]
    arrived = tick(lab)
    assert jobs_of(arrived) == {"ingest": two}
    for request in arrived.run_requests or ():
        assert run(lab, request).success
    assert jobs_of(tick(lab)) == {"score": two}
    started = under_way(lab, "score", two[0])
    assert jobs_of(tick(lab)) == {"score": two[1:]}
    lab.instance.report_run_canceled(started)
    settle(lab)

    put_in_use(lab, "mlp")
    settle(lab)
    facts = {lab.project.artifact("predictions", b).facts["checkpoint"] for b in batches}
    assert facts == {"mlp_realistic (time)"}


def test_nothing_is_scored_where_nothing_can_come_of_it(retrained: Lab) -> None:
    lab = retrained
    put_in_use(lab, "gbt")
    lab.store.add("lab-d", profile="io-walk", duration_s=5)  # too short: the batch has no window
    while ingests := jobs_of(tick(lab)).get("ingest"):
        for batch in ingests:
            assert lab.execute("ingest", batch).success
    scored = jobs_of(tick(lab))["score"]
    assert [batch.partition(".")[0] for batch in scored] == ["lab-a", "lab-b", "lab-c"]

    champion = lab.project.champion
    assert champion is not None
    (kept,) = lab.workspace.champion_folder.glob("checkpoints/*/*.ckpt.json")
    kept.rename(kept.with_suffix(".aside"))
    assert jobs_of(tick(lab)) == {}  # it does not load, so drift is not compared with it either
    kept.with_suffix(".aside").rename(kept)
    assert jobs_of(tick(lab)) == {"score": scored}

    pointer = lab.workspace.champion_folder / "champion.json"
    sound = pointer.read_bytes()
    pointer.write_bytes(sound.replace(b'"by": "test"', b'"by": "tesd"'))
    assert jobs_of(told := tick(lab)) == {}
    assert str(pointer) in str(told.skip_reason)
    pointer.write_bytes(sound)
    rows = [asdict(replace(each, alarm_rules={})) for each in read_history(pointer.parent)]
    pointer.write_text(json.dumps({"schema": BEFORE_SEALS, "history": rows}))
    assert jobs_of(tick(lab)) == {}  # promoted before alarm rules


def test_a_batch_whose_scoring_fails_is_given_up(retrained: Lab) -> None:
    lab = retrained
    put_in_use(lab, "gbt")
    while "ingest" in jobs_of(result := tick(lab)):
        for request in result.run_requests or ():
            assert run(lab, request).success
    batch = jobs_of(result)["score"][0]
    (lab.artifacts / "predictions").write_text("a file where a folder has to be")
    for _ in range(MAX_FAILURES):
        (request,) = [r for r in tick(lab).run_requests or () if r.partition_key == batch]
        assert not run_score(lab, request).success
    assert batch not in jobs_of(tick(lab))["score"]


def test_dagster_takes_what_the_sensor_requests(retrained: Lab) -> None:
    """Its own evaluation checks jobs, partitions and assets of the requests."""
    put_in_use(retrained, "gbt")
    shutil.rmtree(
        retrained.workspace.batch_folder(next(iter(retrained.workspace.listing().batches)))
    )
    for batch in list(retrained.workspace.listing().batches)[1:]:
        assert retrained.execute("ingest", batch).success  # drift
    definitions = build_defs(workspace=retrained.workspace)
    with (
        dg.build_sensor_context(
            instance=retrained.instance,
            definitions=definitions,
            resources={"workspace": resource_of(retrained.workspace)},
        ) as context,
        partition_loading_context(dynamic_partitions_store=retrained.instance),
    ):
        data = definitions.get_sensor_def("new_batches").evaluate_tick(context)
    requests = {
        (r.job_name, str(r.partition_key).partition(".")[0]) for r in data.run_requests or ()
    }
    assert requests == {("ingest", "lab-a"), ("score", "lab-b"), ("score", "lab-c")}


# --- nights


def test_a_night_ingests_then_retrains_what_changed(trained: Lab, tmp_path: Path) -> None:
    lab = Lab(trained.store, tmp_path / "artifacts", trained.instance, trained.settings)
    shutil.copytree(trained.artifacts, lab.artifacts)
    requests = night(lab)
    assert {r.partition_key for r in requests} == {"host", "time"}  # never trained
    assert all(dg.AssetKey("datasets") in r.asset_selection for r in requests)

    batch = next(iter(lab.workspace.listing().batches))
    shutil.rmtree(lab.workspace.batch_folder(batch) / "tensor_shards")
    (ingest,) = night(lab)
    assert (ingest.partition_key, ingest.asset_selection) == (batch, INGESTED)
    started = under_way(lab, "ingest", batch)
    assert f"ingest {batch}: run {started.run_id[:8]} is started" in str(night(lab))
    lab.instance.report_run_canceled(started)


def test_what_arrives_after_the_ingest_of_a_night_waits_for_the_next(small: Lab) -> None:
    for request in night(small):
        assert run(small, request).success
    late = small.store.add("lab-b", profile="io-walk", duration_s=20)
    batch = small.workspace.listing().find(late.episode_id).batch
    retrains = night(small)
    assert {r.partition_key for r in retrains} == {"host", "time"}  # one sample a profile
    (ingest,) = night(small, later=timedelta(hours=20))
    assert (ingest.partition_key, ingest.asset_selection) == (batch, INGESTED)

    next(small.workspace.batch_folder(batch).glob("*/manifest.json")).unlink()
    (ingest,) = night(small)  # lost, so nothing can be built on it
    assert ingest.partition_key == batch


def test_a_recipe_is_stale_where_data_settings_or_results_changed(
    trained: Lab, tmp_path: Path
) -> None:
    def why(**settings: Any) -> dict[str, str]:
        """Stage -> code, of everything of the recipe that is not current."""
        lab = Lab(trained.store, artifacts, trained.instance, trained.settings | settings)
        due = {item.key: item for item in lab.project.due("retrain")}
        return {s.stage: s.code for s in due[RECIPE].statuses} if RECIPE in due else {}

    artifacts = trained.artifacts
    assert why() == {}
    names = {f"checkpoints/{variant.name}" for variant in VARIANTS}
    seeded = [*names, "held_out_predictions", "likeness/oracle", "likeness/realistic"]
    assert why(seed=1) == dict.fromkeys(seeded, "settings")
    assert why(splits=TINY["splits"] | {"val_share": 0.3}) == {"datasets": "settings"}
    assert set(why(report={"replicates": 300}).values()) == {"settings"}
    artifacts = tmp_path / "artifacts"
    shutil.copytree(trained.artifacts, artifacts)
    shutil.rmtree(artifacts / "reports" / RECIPE / "cnn_oracle")
    assert why() == {"eval_reports/cnn_oracle": "not_made"}
    next(artifacts.glob(f"checkpoints/{RECIPE}/cnn_realistic.ckpt.json")).unlink()
    assert why() == {
        "checkpoints/cnn_realistic": "not_made",
        "alarm_rules/cnn_realistic": "inputs",
        "held_out_predictions": "inputs",
        "eval_reports/cnn_oracle": "not_made",
    }
    shutil.rmtree(artifacts / "datasets" / RECIPE)
    assert why()["datasets"] == "not_made"
    assert {why()[name] for name in names} == {"inputs", "not_made"}


# --- killed runs


def test_a_run_that_has_ended_leaves_nothing(small: Lab) -> None:
    class CancelAtFirstWord(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            for started in small.instance.get_runs():
                small.instance.report_run_canceled(started)

    sync_batches(small.instance, small.workspace)
    batch = next(iter(small.workspace.listing().batches))
    handler, log = CancelAtFirstWord(), logging.getLogger("phasewatch")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        refused = small.execute("ingest", batch)
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    assert not refused.success
    assert "is CANCELED, but its process runs on; its work is not kept" in failure(refused)
    assert not [path for path in small.artifacts.rglob("*") if path.is_file()]
    assert small.recorded("tensor_shards", batch) == {}


def test_a_run_is_asked_once_for_files_written_in_a_row(
    small: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small.instance.create_run_for_job(
        build_defs(workspace=small.workspace).resolve_job_def("ingest")
    )
    small.instance.report_engine_event("begun", run)
    answers: list[str] = []
    real = small.instance.get_run_by_id
    monkeypatch.setattr(small.instance, "get_run_by_id", lambda i: answers.append(i) or real(i))
    now = [10.0]
    monkeypatch.setattr("resources.runs.time.monotonic", lambda: now[0])
    with writing_for(run, small.instance):
        answers.clear()
        for name in "abc":
            write_atomically(tmp_path / name, b"")
        assert len(answers) == 1
        small.instance.report_run_canceled(run)
        now[0] += ASKED_S
        with pytest.raises(dg.Failure):
            write_atomically(tmp_path / "d", b"")
    assert not (tmp_path / "d").exists()


HANG = """
import sys, time, stages.ingest
real = stages.ingest.ingest_batch
def slowly(*args, **named):
    print("working", flush=True)
    time.sleep(600)
    return real(*args, **named)
stages.ingest.ingest_batch = slowly
from pipelines.cli.app import app
app(["run", "--ingest-only"])
"""


def test_a_killed_command_leaves_no_process_and_its_run_is_ended(small: Lab) -> None:
    home = Path(small.instance.root_directory)
    environment = os.environ | {
        "DAGSTER_HOME": str(home),
        "PHASEWATCH_STORE": str(small.store.root),
        "PHASEWATCH_ARTIFACTS": str(small.artifacts),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", HANG],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "working"
        with dg.DagsterInstance.from_config(str(home)) as instance:
            (started,) = instance.get_runs()
            assert started.tags[PROCESS_TAG].split(":")[3] == str(process.pid)
            assert end_dead_runs(instance) == []  # it lives
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(
                encoding="utf-8"
            )
            for child in children.split():  # only those that copy the log, and end with it
                assert b"watch_orphans" in (
                    command := Path(f"/proc/{child}/cmdline").read_bytes()
                ) or command.startswith(b"tail")
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert end_dead_runs(instance) == [started.run_id]
            assert instance.get_runs()[0].status is dg.DagsterRunStatus.FAILURE
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not list(small.artifacts.rglob("manifest.json"))


BETWEEN_STEPS = """
import os, signal
import dagster._core.execution.resources_init as resources
real = resources.single_resource_event_generator
def interrupted(*args, **named):
    os.kill(os.getpid(), signal.SIGINT)
    yield from real(*args, **named)
resources.single_resource_event_generator = interrupted
from pipelines.cli.app import app
app(["run", "--ingest-only"])
"""


def test_an_interrupt_outside_a_step_ends_the_run_in_one_line(small: Lab) -> None:
    environment = os.environ | {
        "DAGSTER_HOME": str(small.instance.root_directory),
        "PHASEWATCH_STORE": str(small.store.root),
        "PHASEWATCH_ARTIFACTS": str(small.artifacts),
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        [sys.executable, "-c", BETWEEN_STEPS],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert (ended.returncode, "failed" in ended.stderr) == (INTERRUPTED, False), ended.stderr
    assert ended.stderr.splitlines()[-1] == "interrupted"


def test_an_interrupted_run_says_so_and_is_not_left_under_way(small: Lab) -> None:
    home = Path(small.instance.root_directory)
    environment = os.environ | {
        "DAGSTER_HOME": str(home),
        "PHASEWATCH_STORE": str(small.store.root),
        "PHASEWATCH_ARTIFACTS": str(small.artifacts),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", HANG],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "working"
        time.sleep(1)  # what shows a step's output has started
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, progress = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED
    assert progress.splitlines()[-2:] == [
        "what is finished is kept; to continue, repeat the command", "interrupted"
    ]  # fmt: skip
    assert "ingest: 3 of 3 batches to do" in progress
    assert "Traceback" not in progress
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (run,) = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.FAILURE


# --- another machine


def test_artifacts_on_another_path_are_reused_and_recorded_there(
    trained: Lab, tmp_path: Path
) -> None:
    """What docs/operations.md says to copy is enough: folders, but no records of Dagster's."""
    store = StoreBuilder(tmp_path / "copied" / "store")
    shutil.copytree(trained.store.root, store.root, dirs_exist_ok=True)
    artifacts = tmp_path / "copied" / "artifacts"
    shutil.copytree(trained.artifacts, artifacts)
    with new_instance(tmp_path / "home") as instance:
        there = Lab(store, artifacts, instance, trained.settings)
        assert sync_batches(instance, there.workspace).stale == []
        batch = next(iter(there.workspace.listing().batches))
        config = {"ops": {"predictions": {"config": {"model": "gbt", "recipe": RECIPE}}}}
        refused = there.execute("score", batch, config=config)
        assert "Dagster has no record of its training" in failure(refused)
        only = [
            dg.AssetKey("datasets"), asset_key("checkpoints/gbt_realistic"),
            asset_key("alarm_rules/gbt_realistic"), asset_key("likeness/realistic"),
        ]  # fmt: skip
        retrained = there.execute("retrain", RECIPE, only=only)
        assert retrained.success, failure(retrained)
        made = materialized(retrained)
        assert all(metadata["reused"] for metadata in made.values())
        scored = there.execute("score", batch, config=config)
        assert scored.success, failure(scored)


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("[!d]*.yaml")), ids=lambda p: p.name)
def test_a_configuration_that_ships_is_valid(path: Path) -> None:
    read_workspace(path, {})


def test_without_a_home_dagster_is_refused_and_nothing_is_made(small: Lab, tmp_path: Path) -> None:
    environment = os.environ | {
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "PHASEWATCH_STORE": str(small.store.root),
        "PHASEWATCH_ARTIFACTS": str(small.artifacts),
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("DAGSTER_HOME", None)
    batch = next(iter(small.workspace.listing().batches))
    words = ["job", "execute", "-m", "pipelines.definitions", "-j", "ingest"]
    tags = json.dumps({"dagster/partition": batch})
    done = subprocess.run(
        [Path(sys.executable).with_name("dagster"), *words, "--tags", tags],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "DAGSTER_HOME" in done.stdout + done.stderr
    assert not small.artifacts.exists()


def test_a_partial_run_configuration_keeps_the_machine_settings_of_the_environment() -> None:
    given = {
        "store": "/a/store", "artifacts": "/an/artifacts", "exclusions": "/a/list.yaml",
        "notify": "/bin/true", "require_signatures": True,
    }  # fmt: skip
    assert set(given) == set(MACHINE_SETTINGS)
    definitions = build_defs(workspace=checked_workspace(given))
    document = {"resources": {"workspace": {"config": {"device": "cpu"}}}}
    filled = dg.validate_run_config(definitions.resolve_job_def("retrain"), document)
    settings = filled["resources"]["workspace"]["config"]
    assert {name: settings[name] for name in given} == given


def test_a_run_is_executed_where_it_says_or_else_where_the_environment_does() -> None:
    file = ROOT / "config" / "ray.yaml"
    on_ray = yaml.safe_load(file.read_text())
    default = execution_from_environment({"PHASEWATCH_CONFIG": str(file)})

    def chosen(execution: Any, document: dict[str, Any]) -> list[str]:
        job = build_defs(execution=execution).resolve_job_def("retrain")
        return list(dg.validate_run_config(job, document)["execution"]["in_process_or_ray"])

    assert chosen(None, {}) == ["in_process"]
    assert chosen(None, on_ray) == ["ray"]
    assert chosen(default, {}) == ["ray"]
    assert chosen(default, {"execution": {"config": {"in_process": {}}}}) == ["in_process"]


def test_ray_that_is_not_installed_is_said_with_the_remedy(
    small: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.executors.ray_executor", None)
    executor = build_executor()
    job = InMemoryJob(build_defs().resolve_job_def("retrain"))
    context = dg.InitExecutorContext(job, executor, {"ray": {}}, small.instance)
    assert executor.executor_creation_fn is not None
    with pytest.raises(dg.DagsterInvariantViolationError, match=r"pip install .*\[ray\]"):
        executor.executor_creation_fn(context)


# --- doctor


def doctor(lab: Lab, *words: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    paths = ["--store", str(lab.store.root), "--artifacts", str(lab.artifacts)]
    return CliRunner().invoke(app, ["doctor", *paths, *words])


def test_doctor_says_what_is_stale_and_what_to_do(
    small: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "no-home"
    before = doctor(small, home=empty, monkeypatch=monkeypatch)
    assert before.exit_code == FAILED
    assert f"checkpoints: {4 * len(VARIANTS)} of {4 * len(VARIANTS)}: missing\n" in before.output
    run = f"phasewatch run --store {small.store.root} --artifacts {small.artifacts}"
    assert f"remedy: {run}\n" in before.output
    assert not empty.exists()
    for label in ("free disk space, GB", "folder is set up", "packages of the base install"):
        assert label in before.output

    small.ingest()
    document = json.loads(doctor(small, "--json", home=empty, monkeypatch=monkeypatch).stdout)
    assert "ingest" not in document["not_current"]
    # a sample a profile, and a session
    assert document["not_current"]["datasets"] == ["2 of 2: missing"]
    assert [problem["remedy"] for problem in document["problems"]] == [run]
    assert document["artifacts"]["free_gb"] > 0
    assert not document["ok"]


def test_doctor_lists_a_missing_sign_extra_without_a_problem(
    small: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.cli.doctor._version", lambda name: (
        None if name in ("cryptography", "uvicorn") else "1"
    ))  # fmt: skip
    told = doctor(small, "--json", home=tmp_path / "no-home", monkeypatch=monkeypatch)
    document = json.loads(told.stdout)
    assert document["installed"]["sign"] == {"cryptography": None}
    problems = " ".join(each["problem"] for each in document["problems"])
    assert ("uvicorn" in problems, "cryptography" in problems) == (True, False)


def test_doctor_counts_what_is_stale_and_names_one_remedy(
    retrained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for recipe in {"host", "sample", "time"} - {RECIPE}:
        for folder in ("datasets", "checkpoints", "held_out_predictions", "reports"):
            shutil.copytree(
                retrained.artifacts / folder / RECIPE, retrained.artifacts / folder / recipe
            )
    config = tmp_path / "config.yaml"

    def problems(**settings: Any) -> tuple[dict[str, list[str]], list[str]]:
        document = {"resources": {"workspace": {"config": TINY | settings}}}
        config.write_text(json.dumps(document))
        words = ["--json", "--config", str(config)]
        told = doctor(retrained, *words, home=tmp_path / "no-home", monkeypatch=monkeypatch)
        found = json.loads(told.stdout)
        return found["not_current"], [problem["remedy"] for problem in found["problems"]]

    folders = f"--store {retrained.store.root} --artifacts {retrained.artifacts}"
    run = f"phasewatch run --config {config} {folders}"
    gbt = retrained.artifacts / "checkpoints" / RECIPE / "gbt_realistic.ckpt.json"
    stale, remedies = problems(seed=1)
    total = 3 * len(VARIANTS)
    assert stale["checkpoints"][0].startswith(f"{total} of {total}: made with other settings")
    assert remedies == [run]
    gbt.unlink()
    shutil.rmtree(next(iter((retrained.artifacts / "batches").iterdir())))
    stale, remedies = problems()
    assert f"1 of {total}: missing (gbt_realistic {RECIPE})" in stale["checkpoints"]
    assert stale["ingest"][0].startswith("1 of ")
    assert remedies == [run]


def test_doctor_notices_a_file_that_was_altered_in_place(
    retrained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> dict[str, list[str]]:
        told = doctor(retrained, "--json", home=tmp_path / "none", monkeypatch=monkeypatch)
        return json.loads(told.stdout)["not_current"]

    folders = {
        "ingest": "batches/*/tensor_shards/series-*.npy",
        "datasets": f"datasets/{RECIPE}/windows*.parquet",
        "checkpoints": f"checkpoints/{RECIPE}/gbt_realistic*.ubj",
        "eval_reports": f"reports/{RECIPE}/gbt_realistic/report*.json",
    }
    before = counted()
    for kind, pattern in folders.items():
        path = sorted(retrained.artifacts.glob(pattern))[0]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        assert str(path) not in " ".join(before.get(kind, []))
        assert str(path) in " ".join(counted()[kind]), kind


def test_doctor_finds_a_missing_input_and_no_other_setting(
    retrained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(retrained.artifacts / "likeness" / RECIPE)
    told = doctor(retrained, "--json", home=tmp_path / "no-home", monkeypatch=monkeypatch)
    [reports] = [
        line for line in json.loads(told.stdout)["not_current"]["eval_reports"] if RECIPE in line
    ]
    assert "likeness" in reports
    assert "settings" not in reports


def test_doctor_names_a_setting_that_a_run_would_refuse(
    small: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    settings = TINY | {"splits": {"test_host": "lab-z"}}
    config.write_text(json.dumps({"resources": {"workspace": {"config": settings}}}))
    words = ["--json", "--config", str(config)]
    told = doctor(small, *words, home=tmp_path / "no-home", monkeypatch=monkeypatch)
    problems = [problem["problem"] for problem in json.loads(told.stdout)["problems"]]
    paths = ["--store", str(small.store.root), "--artifacts", str(small.artifacts)]
    refused = CliRunner().invoke(app, ["run", "--config", str(config), *paths])
    assert refused.exit_code == USAGE
    assert [p for p in problems if "lab-z" in p and p in refused.stderr]


def test_an_empty_store_is_refused_before_a_run_begins(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "index.jsonl").touch()
    paths = ["--store", str(tmp_path / "store"), "--artifacts", str(tmp_path / "artifacts")]
    told = CliRunner().invoke(app, ["run", *paths])
    assert (told.exit_code, "no episodes" in told.stderr) == (FAILED, True), told.output
    assert not (tmp_path / "artifacts" / "dagster_home").exists()
    assert CliRunner().invoke(app, ["run", "--ingest-only", *paths]).exit_code == 0


def test_the_home_of_another_artifacts_folder_is_refused(
    small: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["--store", str(small.store.root), "--artifacts", str(small.artifacts)]
    other = tmp_path / "other" / "dagster_home"
    monkeypatch.setenv("DAGSTER_HOME", str(other))
    told = CliRunner().invoke(app, ["sync", *paths])
    assert (told.exit_code, other.exists()) == (USAGE, False)
    assert f"got {other}, which holds the records of another artifacts folder" in told.stderr
    result = doctor(small, "--json", home=other, monkeypatch=monkeypatch)
    remedies = [problem["remedy"] for problem in json.loads(result.stdout)["problems"]]
    assert remedies[0].startswith("unset DAGSTER_HOME")
    with new_instance(tmp_path / "dagster_home") as instance:
        batch = sync_batches(instance, small.workspace).stale[0]
        lab = Lab(small.store, tmp_path / "third", instance, small.settings)
        assert "DAGSTER_HOME must be" in failure(lab.execute("ingest", batch))

    monkeypatch.delenv("DAGSTER_HOME")
    assert CliRunner().invoke(app, ["sync", *paths]).exit_code == 0
    assert (small.artifacts / "dagster_home" / "dagster.yaml").is_file()
    assert "DAGSTER_HOME" not in os.environ


def test_run_and_sync_tell_a_program_what_they_did(
    small: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    paths = ["--store", str(small.store.root), "--artifacts", str(small.artifacts), "--json"]

    def told(*words: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*words, *paths])
        return json.loads(result.stdout) | {"exit": result.exit_code}

    batches = list(small.workspace.listing().batches)
    synced = told("sync")
    assert (synced["batches"], synced["new"], synced["stale"]) == (batches, batches, batches)
    ran = told("run", "--ingest-only")
    (whole,) = ran["runs"]
    assert (whole["job"], whole["partition"]) == ("ingest", f"{batches[0]}...{batches[-1]}")
    assert "tensor_shards" in whole["made"]
    assert ran["report"] is None
    assert told("run", "--batch", batches[0])["runs"] == []
    (small.workspace.batch_folder(batches[0]) / "tensor_shards" / "manifest.json").unlink()
    (again,) = told("run", "--batch", batches[0], "--batch", batches[1])["runs"]
    assert again["partition"] == batches[0]
    assert "tensor_shards" in again["made"]
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        assert instance.get_run_by_id(again["run_id"]) is not None
    wrong = told("run", "--recipe", "moon")
    assert (wrong["exit"], "got 'moon'" in wrong["error"]) == (USAGE, True)
    for only_ingests in (["--batch", batches[0]], ["--ingest-only"]):
        assert told("run", *only_ingests, "--recipe", "host")["exit"] == USAGE


def test_doctor_finds_other_settings_and_a_killed_run(
    small: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(small.instance.root_directory)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        batch = next(iter(small.workspace.listing().batches))
        dead = instance.create_run_for_job(
            build_defs(workspace=small.workspace).resolve_job_def("ingest"),
            status=dg.DagsterRunStatus.STARTED,
            tags={"dagster/partition": batch},
        )
        gone = f"{dead.run_id}:{socket.gethostname()}:00000000:1:0"
        instance.add_run_tags(dead.run_id, {PROCESS_TAG: gone})
    told = doctor(small, home=home, monkeypatch=monkeypatch)
    assert f"{home}/dagster.yaml differs from config/dagster.yaml" in told.output
    assert f"run {dead.run_id[:8]} (ingest {batch}) counts as under way" in told.output
    lines = [" ".join(line.split()) for line in told.output.splitlines()]
    assert f"runs under way {dead.run_id} ingest {batch} STARTED" in lines
    assert f"polars: {version('polars')}" in lines
    settings = (ROOT / "config" / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text(settings + f"storage: {{sqlite: {{base_dir: {home}}}}}\n")
    told = doctor(small, home=home, monkeypatch=monkeypatch)
    assert "differs from config/dagster.yaml" not in told.output


def test_doctor_says_that_a_folder_is_of_another_store(
    trained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = StoreBuilder(tmp_path / "other")
    other.populate(profiles=PROFILES[:3], variants=2, duration_s=40)
    lab = Lab(other, trained.artifacts, trained.instance, trained.settings)
    told = doctor(lab, home=tmp_path / "no-home", monkeypatch=monkeypatch)
    assert f"{lab.artifacts} holds artifacts of another store" in told.output
    same = doctor(trained, home=tmp_path / "no-home", monkeypatch=monkeypatch)
    assert "another store" not in same.output


def test_what_no_command_foresaw_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> None:
        raise LookupError("nobody thought of this")

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("pipelines.cli.execution.sync_only", fails)
    monkeypatch.setattr(sys, "argv", ["phasewatch", "sync"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == FAILED
    said = capsys.readouterr().err
    assert "nobody thought of this" in said
    assert "phasewatch --debug sync" in said
    assert "Traceback" not in said
    monkeypatch.setattr(sys, "argv", ["phasewatch", "--debug", "sync"])
    with pytest.raises(LookupError):
        main()


def test_a_home_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "home"
    in_the_way.write_text("")
    monkeypatch.setenv("DAGSTER_HOME", str(in_the_way))
    monkeypatch.setattr(sys, "argv", ["phasewatch", "sync"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert (end.value.code, str(in_the_way) in said) == (USAGE, True)
    assert "--debug" not in said
