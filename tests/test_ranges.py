"""Many batches in a run: what is made, recorded, asked for, and what a failing batch keeps back."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
import sqlalchemy as sa
from builders import START_NS, StoreBuilder
from lab import QUIET, TINY, Lab, failure, new_instance, put_in_use

import pipelines.requests
import stages.batch
import stages.validating
from assets.factory import asset_key
from assets.partitions import BATCHES
from episodes.environment import MachineError
from pipelines.automation import new_batches
from pipelines.cli.execution import run_all
from pipelines.graph import build_defs
from pipelines.partitions import (
    RunCoverage,
    partition_label,
    partition_ranges,
    partition_tags,
    sync_batches,
)
from resources.guards import last_metadata
from resources.recording import COMMIT_S, kept_open
from resources.workspace import resource_of
from stages.validating import validating_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stages.manifest import Manifest

OUTPUTS = ("validation_index", "tensor_shards", "feature_shards")
HOSTS = ("lab-a", "lab-b", "lab-c", "lab-d")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Four hosts with two episodes each, of one day."""
    store = StoreBuilder(tmp_path / "store")
    for host in HOSTS:
        for i in range(2):
            store.add(host, profile="io-walk", duration_s=20, start_ns=START_NS + i)
    with new_instance(tmp_path / "home") as instance:
        yield Lab(store, tmp_path / "artifacts", instance, TINY)


def execute(lab: Lab, keys: list[str], outputs: tuple[str, ...] = OUTPUTS) -> Any:
    definitions = build_defs(workspace=lab.workspace)
    return definitions.resolve_job_def("ingest").execute_in_process(
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        instance=lab.instance,
        asset_selection=[asset_key(name) for name in outputs],
        tags=partition_tags(keys),
        raise_on_error=False,
    )


def made(result: dg.ExecuteInProcessResult) -> dict[str, set[str]]:
    """Batch -> assets that a run recorded for it."""
    found: dict[str, set[str]] = {}
    for event in result.get_asset_materialization_events():
        assert event.asset_key
        key = str(event.materialization.partition)
        found.setdefault(key, set()).add(event.asset_key.to_user_string())
    return found


def tags(instance: dg.DagsterInstance, output: str, key: str) -> dict[str, str]:
    """The versions that Dagster recorded."""
    selected = dg.AssetRecordsFilter(asset_key=asset_key(output), asset_partitions=[key])
    [record] = instance.fetch_materializations(selected, limit=1).records
    assert record.asset_materialization
    found = dict(record.asset_materialization.tags or {})
    return {tag: found[tag] for tag in ("dagster/data_version", "dagster/code_version")}


def test_a_run_of_a_range_records_every_batch_as_a_run_of_its_own_would(
    lab: Lab, tmp_path: Path
) -> None:
    keys = sync_batches(lab.instance, lab.workspace).stale
    result = execute(lab, keys)
    assert result.success, failure(result)
    assert made(result) == {key: set(OUTPUTS) for key in keys}
    with new_instance(tmp_path / "alone") as instance:
        alone = Lab(lab.store, tmp_path / "elsewhere", instance, TINY)
        alone.ingest()
        for key in keys:
            for output in OUTPUTS:
                here, there = lab.recorded(output, key), alone.recorded(output, key)
                different = {name for name in here | there if here.get(name) != there.get(name)}
                assert different <= {"path", "seconds"}, output
                assert tags(lab.instance, output, key) == tags(instance, output, key)
    checks = [
        event.asset_check_evaluation_data
        for event in result.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    assert {(check.partition, check.check_name) for check in checks} == {
        (key, name) for key in keys for name in ("labels_match_events", "no_channel_all_missing")
    }
    assert all(check.passed for check in checks)


def test_only_what_is_due_in_a_range_is_made(lab: Lab) -> None:
    keys = sync_batches(lab.instance, lab.workspace).stale
    assert execute(lab, keys[1:3]).success
    result = execute(lab, keys)
    assert made(result).keys() == {keys[0], keys[3]}
    assert lab.project.due("ingest") == []


@pytest.mark.parametrize("changes", [{}, {"force": True}])
def test_a_batch_that_left_the_store_keeps_no_other(lab: Lab, changes: dict[str, Any]) -> None:
    keys = sync_batches(lab.instance, lab.workspace).stale
    rows = lab.store.index_path.read_text().splitlines(keepends=True)
    lab.store.index_path.write_text("".join(row for row in rows if '"lab-b"' not in row))
    shutil.rmtree(lab.store.root / "episodes" / "lab-b")
    lab.settings = TINY | changes
    result = execute(lab, keys)
    assert result.success, failure(result)
    assert made(result).keys() == {keys[0], keys[2], keys[3]}


def test_a_failing_batch_keeps_no_other(lab: Lab) -> None:
    keys = sync_batches(lab.instance, lab.workspace).stale
    in_the_way = lab.workspace.batch_folder(keys[1])
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder has to be")
    result = execute(lab, keys)
    assert not result.success
    assert made(result).keys() == {keys[0], keys[2], keys[3]}
    said = failure(result).splitlines()
    assert len(said) == 1
    assert keys[1] in said[0]
    assert [due.key for due in lab.project.due("ingest")] == [keys[1]]


def test_a_batch_that_a_blocking_check_refuses_fails_the_run(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = sync_batches(lab.instance, lab.workspace).stale
    real = stages.batch.index_facts

    def unjustified(records: Any) -> dict[str, Any]:
        named_ = ["X"] if records[0].host_id == "lab-b" else []
        return real(records) | {"unjustified_usable": named_}

    monkeypatch.setattr(stages.batch, "index_facts", unjustified)
    result = execute(lab, keys)
    assert not result.success
    assert made(result).keys() == set(keys)
    assert [key for key in keys if key in failure(result)] == [keys[1]]


def test_a_command_takes_all_batches_in_one_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (ran,) = run_all(lab.workspace, None, ingest_only=True)
    batches = list(lab.project.listing.batches)
    assert (ran.job, ran.partition) == ("ingest", partition_label(batches))
    assert (ran.made, ran.reused) == (list(OUTPUTS), [])
    assert run_all(lab.workspace, None, ingest_only=True) == []


# --- what the sensor asks for


def requests(lab: Lab) -> list[dg.RunRequest]:
    resources = {"workspace": resource_of(lab.workspace)}
    with dg.build_sensor_context(instance=lab.instance, resources=resources) as context:
        result = new_batches(context)
    assert isinstance(result, dg.SensorResult)
    return list(result.run_requests or ())


def test_a_tick_asks_for_one_run_where_many_batches_are_due(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.requests, "SINGLE_RUNS", 2)
    monkeypatch.setattr(pipelines.requests, "BATCHES_PER_RUN", 3)
    (request,) = requests(lab)
    keys = list(lab.instance.get_dynamic_partitions(str(BATCHES.name)))
    assert request.partition_key is None
    assert {**request.tags}.items() >= partition_tags(keys[:3]).items()
    assert request.asset_selection == [asset_key(name) for name in OUTPUTS]
    (again,) = requests(lab)
    assert again.run_key == request.run_key

    definition = build_defs(workspace=lab.workspace).resolve_job_def("ingest")
    run = lab.instance.create_run_for_job(
        definition, status=dg.DagsterRunStatus.STARTED, tags=dict(request.tags)
    )
    assert [r.partition_key for r in requests(lab)] == [keys[3]]
    lab.instance.report_run_canceled(run)
    result = execute(lab, keys[:3])
    assert result.success
    assert [r.partition_key for r in requests(lab)] == [keys[3]]


def test_which_batches_a_run_covers(lab: Lab) -> None:
    keys = sync_batches(lab.instance, lab.workspace).stale
    definition = build_defs(workspace=lab.workspace).resolve_job_def("ingest")
    runs = {
        name: lab.instance.create_run_for_job(definition, tags=partition_tags(chosen))
        for name, chosen in {"one": keys[2:3], "range": keys[1:3], "none": []}.items()
    }
    coverage = RunCoverage(lab.instance)
    found = {n: [k for k in [*keys, "", "x"] if coverage.includes(r, k)] for n, r in runs.items()}
    assert found == {"one": [keys[2]], "range": keys[1:3], "none": [""]}


def test_ranges_follow_the_partitions_and_are_exact_on_request(lab: Lab) -> None:
    a, b, c, d = sync_batches(lab.instance, lab.workspace).stale
    assert partition_ranges(lab.instance, [d, a, b], 10) == [[a, b, d]]
    assert partition_ranges(lab.instance, [d, a, b], 10, exact=True) == [[a, b], [d]]
    assert partition_ranges(lab.instance, [d, c, a, b], 2) == [[a, b], [c, d]]


# --- several processes


def content(artifacts: dict[str, Manifest]) -> dict[str, Any]:
    return {name: (m.files, m.facts) for name, m in artifacts.items()}


@pytest.mark.parametrize("who", ["workers", "both"])
def test_bytes_do_not_depend_on_the_number_of_processes(
    who: str, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, project = lab.project.stages["ingest"], lab.project
    keys = list(project.listing.batches)
    for key, made_ in project.make_each(stage, keys):
        assert not isinstance(made_, Exception), key
    monkeypatch.setattr(stages.validating, "WORTHWHILE", 1)
    monkeypatch.setattr(stages.validating, "cores", lambda: 2)
    if who == "workers":  # this process does nothing itself
        ahead = stages.validating._ValidationAhead
        monkeypatch.setattr(ahead, "_result", lambda _, __, future: future)
        monkeypatch.setattr(stages.validating, "_validate_and_extract", None)
    elsewhere = Lab(lab.store, tmp_path / "elsewhere", lab.instance, TINY)
    for key, made_ in elsewhere.project.make_each(stage, keys):
        assert not isinstance(made_, Exception), key
        assert content(made_.artifacts) == content(project.artifacts("ingest", key))


def test_what_is_left_out_or_not_announced_is_no_matter(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.validating, "WORTHWHILE", 1)
    monkeypatch.setattr(stages.validating, "cores", lambda: 2)
    episodes, workspace = lab.workspace.listing().episodes, lab.workspace
    given = (workspace.validation, workspace.layout)
    with validating_ahead(episodes[1:7], *given):
        for i in (2, 0, 5, 1, 7):  # the first was not announced; going back means validating again
            record, _ = stages.validating.validate_and_extract(episodes[i], *given)
            assert record.episode_id == episodes[i].episode_id


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_worker_decides_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.validating, "WORTHWHILE", 1)
    monkeypatch.setattr(stages.validating, "cores", lambda: 3)
    monkeypatch.setattr(stages.validating, "_AHEAD_BYTES", 0)  # most are not yet asked for
    episodes, workspace = lab.workspace.listing().episodes, lab.workspace
    given = (workspace.validation, workspace.layout)
    with validating_ahead(episodes, *given):
        stages.validating.validate_and_extract(episodes[0], *given)
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        with pytest.raises(MachineError, match="killed"):
            [stages.validating.validate_and_extract(episode, *given) for episode in episodes[1:]]
    assert multiprocessing.active_children() == []


def test_a_fault_of_the_machine_in_a_worker_is_one_here(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.validating, "WORTHWHILE", 1)
    monkeypatch.setattr(stages.validating, "cores", lambda: 2)
    stage, project = lab.project.stages["ingest"], lab.project
    keys = list(project.listing.batches)
    project.listing.batches[keys[1]][0].path.unlink()
    project.listing.batches[keys[1]][0].path.mkdir()  # reading it is an error of the system
    outcomes = dict(project.make_each(stage, keys))
    failed = {key for key, outcome in outcomes.items() if isinstance(outcome, MachineError)}
    assert failed <= {keys[1]}
    assert not any(isinstance(outcomes[key], Exception) for key in keys if key != keys[1])
    assert last_metadata(lab.instance, "tensor_shards", keys[0]) is None  # nothing ran in Dagster


@pytest.mark.parametrize(("job", "output"), [("ingest", "drift"), ("score", "predictions")])
def test_a_range_records_the_checks_of_a_stage_with_one_output(
    retrained: Lab, job: str, output: str
) -> None:
    put_in_use(retrained, "knn")
    keys = list(retrained.workspace.listing().batches)
    definitions = build_defs(workspace=retrained.workspace)
    result = definitions.resolve_job_def(job).execute_in_process(
        run_config=QUIET,
        instance=retrained.instance,
        asset_selection=[asset_key(output)],
        tags=partition_tags(keys),
        raise_on_error=False,
    )
    assert result.success, failure(result)
    assert len(keys) > 1
    assert made(result) == {key: {output} for key in keys}
    assert len(result.get_asset_materialization_events()) == len(keys)
    checked = {
        (event.partition, event.check_name) for event in result.get_asset_check_evaluations()
    }
    declared = definitions.resolve_asset_graph().get_check_keys_for_assets({asset_key(output)})
    assert checked == {(key, check.name) for key in keys for check in declared}


def test_an_open_log_is_read_and_written_by_others_meanwhile(lab: Lab) -> None:
    """Statements wait for others to be committed with them, but not for long."""
    with (
        dg.DagsterInstance.from_ref(lab.instance.get_ref()) as other,
        kept_open(lab.instance),
    ):
        for i in range(3):
            lab.instance.report_runless_asset_event(dg.AssetMaterialization(f"ours_{i}"))
            other.report_runless_asset_event(dg.AssetMaterialization(f"theirs_{i}"))
        until = time.monotonic() + 60
        while not other.has_asset_key(dg.AssetKey("ours_2")) and time.monotonic() < until:
            time.sleep(COMMIT_S)
        found = {key.to_user_string() for key in other.get_asset_keys()}
        assert {f"{whose}_{i}" for whose in ("ours", "theirs") for i in range(3)} <= found
        lab.instance.report_runless_asset_event(dg.AssetMaterialization("last"))
    with dg.DagsterInstance.from_ref(lab.instance.get_ref()) as other:
        assert other.has_asset_key(dg.AssetKey("last"))


def test_a_failed_commit_is_raised_by_the_next_event_and_keeps_no_lock(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = []
    commit = sa.Connection.commit

    def fail_once(connection: sa.Connection) -> None:
        if failures:
            raise failures.pop()
        commit(connection)

    monkeypatch.setattr(sa.Connection, "commit", fail_once)
    with (
        dg.DagsterInstance.from_ref(lab.instance.get_ref()) as other,
        kept_open(lab.instance),
    ):
        lab.instance.report_runless_asset_event(dg.AssetMaterialization("first"))  # makes the log
        time.sleep(3 * COMMIT_S)
        for _ in range(2):  # of the run's own log and of the index
            failures.append(sa.exc.OperationalError("COMMIT", {}, OSError("disk full")))
        lost = dg.AssetMaterialization("lost")
        lab.instance.report_runless_asset_event(lost)
        while failures:
            time.sleep(COMMIT_S)
        time.sleep(COMMIT_S)  # the failure is noted after it is raised
        with pytest.raises(sa.exc.OperationalError, match="disk full"):
            lab.instance.report_runless_asset_event(lost)
        other.report_runless_asset_event(dg.AssetMaterialization("theirs"))
        lab.instance.report_runless_asset_event(dg.AssetMaterialization("later"))
    keys = {key.to_user_string() for key in lab.instance.get_asset_keys()}
    assert {"theirs", "later"} <= keys
    assert "lost" not in keys
