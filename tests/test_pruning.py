"""What pruning drops of Dagster's records and of artifacts, and what stays whatever its age."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from builders import START_NS, StoreBuilder
from dagster._core.event_api import PartitionKeyFilter
from lab import POSTGRES, TINY, Lab, new_instance, postgresql
from typer.testing import CliRunner

from assets.factory import asset_key, asset_keys
from champion import history
from champion.history import ChampionEntry, now
from pipelines.automation import new_batches
from pipelines.cli.app import OK, USAGE, app
from pipelines.graph import build_defs
from pipelines.pruning import prune, prune_job
from resources.records import _SMALL_PAGE, _THINNED_BYTES, prune_records
from resources.runs import FINISHED
from resources.workspace import resource_of
from stages.retention import (
    DAY_S,
    PRUNED_FILE,
    delete_items,
    disk_usage,
    items_to_discard,
    last_pruned,
)
from stages.workspace import Workspace

SOON = timedelta(minutes=1)
"""From now: all that a test has recorded is older."""


@pytest.fixture(params=["sqlite", "postgresql"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """Two hosts with an episode each, nothing ingested, under each kind of database."""
    store = StoreBuilder(tmp_path / "store")
    for host in ("lab-a", "lab-b"):
        store.add(host, profile="io-walk", duration_s=20)
    if request.param == "sqlite":
        with new_instance(tmp_path / "home") as instance:
            yield Lab(store, tmp_path / "artifacts", instance, TINY)
        return
    pytest.importorskip("dagster_postgres", reason="the extra `ray` is not installed")
    if POSTGRES is None:
        pytest.skip("no PostgreSQL server on this machine")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # its socket needs a short path
        Path(folder).chmod(0o755)
        with postgresql(Path(folder)) as url:
            overrides = {"storage": {"postgres": {"postgres_url": url}}}
            (tmp_path / "home").mkdir()
            home = str(tmp_path / "home")
            with dg.DagsterInstance.local_temp(home, overrides=overrides) as instance:
                yield Lab(store, tmp_path / "artifacts", instance, TINY)


def is_sqlite(lab: Lab) -> bool:
    return bool(list(Path(lab.instance.root_directory).rglob("index.db")))


def log_file(lab: Lab, run: str) -> Path:
    return Path(lab.instance.root_directory) / "history" / "runs" / f"{run}.db"


def events_of(lab: Lab, run: str) -> list[str]:
    return [
        entry.dagster_event.event_type_value if entry.dagster_event else ""
        for entry in lab.instance.all_logs(run)
    ]


def remembered(lab: Lab) -> dict[str, Any]:
    """The last materialization and the last outcome of every check, by asset and partition."""
    storage, found = lab.instance.event_log_storage, dict[str, Any]()
    graph = build_defs(workspace=lab.workspace).resolve_asset_graph()
    for key in asset_keys("ingest"):
        for batch in (None, *lab.workspace.listing().batches):
            name = f"{key.to_user_string()} {batch or ''}"
            records = lab.instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=key, asset_partitions=[batch] if batch else None),
                limit=1,
            ).records
            found[name] = [(r.storage_id, r.run_id) for r in records]
            chosen = PartitionKeyFilter(key=batch) if batch else None
            checks = storage.get_latest_asset_check_execution_by_key(
                sorted(graph.get(key).check_keys, key=str), partition_filter=chosen
            )
            for check, record in checks.items():
                found[f"{name} {check.name}"] = (record.id, record.run_id, record.status)
        found[f"tags {key.to_user_string()}"] = storage.get_latest_tags_by_partition(
            key, dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
        )
    return found


def test_the_last_of_everything_stays_and_the_rest_goes(small: Lab) -> None:
    batch, other = small.workspace.listing().batches
    small.ingest()
    first = small.instance.get_run_ids(dg.RunsFilter(tags={"dagster/partition": batch}))[0]
    last = small.execute("ingest", batch).run_id
    only = small.instance.get_run_ids(dg.RunsFilter(tags={"dagster/partition": other}))[0]
    job = build_defs(workspace=small.workspace).resolve_job_def("ingest")
    busy = small.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED).run_id
    logs = Path(small.instance.root_directory) / "storage"
    assert {path.name for path in logs.iterdir()} >= {first, last, only}
    before, n_busy = remembered(small), len(events_of(small, busy))
    assert all(before.values())

    told = prune_records(small.instance, datetime.now(UTC) + SOON, dry_run=True)
    assert small.instance.get_run_by_id(first) is not None
    done = prune_records(small.instance, datetime.now(UTC) + SOON)
    assert (told.runs, told.logs, told.events) == (done.runs, done.logs, done.events) == (
        1, 2, done.events,
    )  # fmt: skip
    assert remembered(small) == before
    assert {run.run_id for run in small.instance.get_runs()} == {last, only, busy}
    assert len(events_of(small, busy)) == n_busy
    assert not {path.name for path in logs.iterdir()} & {first, last, only}
    for run in (last, only):
        kinds = set(events_of(small, run))
        assert {"PIPELINE_START", "PIPELINE_SUCCESS"} <= kinds
        assert not kinds & {"STEP_START", "STEP_OUTPUT", "ENGINE_EVENT", ""}
    tensors = small.instance.fetch_materializations(asset_key("tensor_shards"), limit=9)
    assert len(tensors.records) == 2
    history_of_checks = small.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(asset_key("tensor_shards"), "no_channel_all_missing"), limit=9
    )
    assert {record.run_id for record in history_of_checks} == {last, only, busy}
    if is_sqlite(small):
        assert not log_file(small, first).exists()
        assert log_file(small, last).stat().st_size < _THINNED_BYTES
        assert log_file(small, last).read_bytes()[16:18] == _SMALL_PAGE.to_bytes(2, "big")
        assert done.n_bytes > 500_000
        assert told.n_bytes == pytest.approx(done.n_bytes, rel=0.2)
    again = prune_records(small.instance, datetime.now(UTC) + SOON)
    assert (again.runs, again.logs, again.events) == (0, 0 if is_sqlite(small) else 2, 0)
    assert remembered(small) == before
    assert small.execute("ingest", batch).success  # and goes on as before


def test_what_is_younger_stays_as_it_is(small: Lab) -> None:
    small.ingest()
    moment = datetime.now(UTC)
    batch = next(iter(small.workspace.listing().batches))
    young = small.execute("ingest", batch).run_id
    n_events = len(events_of(small, young))
    done = prune_records(small.instance, moment)
    assert (done.runs, done.logs) == (1, 1)
    assert len(events_of(small, young)) == n_events


def test_a_failure_that_nothing_followed_stays_with_its_reason(small: Lab) -> None:
    small.ingest()
    batch, _ = small.workspace.listing().batches
    folder = small.workspace.batch_folder(batch)
    folder.rename(folder.with_name("aside"))
    folder.write_text("a file where a folder has to be")
    failed = small.execute("ingest", batch).run_id
    prune_records(small.instance, datetime.now(UTC) + SOON)
    assert "STEP_FAILURE" in events_of(small, failed)
    folder.unlink()
    assert small.execute("ingest", batch).success
    prune_records(small.instance, datetime.now(UTC) + SOON)
    assert small.instance.get_run_by_id(failed) is None


def test_a_run_that_is_requested_later_has_a_key_that_was_never_used(small: Lab) -> None:
    def tick() -> list[dg.RunRequest]:
        resources = {"workspace": resource_of(small.workspace)}
        with dg.build_sensor_context(instance=small.instance, resources=resources) as context:
            return list(getattr(new_batches(context), "run_requests", None) or ())

    batch = next(iter(small.workspace.listing().batches))
    used = []
    for _ in range(2):  # the second makes anew what was lost
        (request,) = (request for request in tick() if request.partition_key == batch)
        used.append(request.run_key)
        assert small.execute("ingest", batch, tags=dict(request.tags)).success
        folder = small.workspace.batch_folder(batch)
        folder.rename(folder.with_name(f"lost-{len(used)}"))
    prune_records(small.instance, datetime.now(UTC) + SOON)
    (request,) = (request for request in tick() if request.partition_key == batch)
    assert request.run_key not in used


def test_what_a_killed_pruning_left_goes_the_next_time(small: Lab) -> None:
    small.ingest()
    batch = next(iter(small.workspace.listing().batches))
    first = small.instance.get_run_ids(dg.RunsFilter(tags={"dagster/partition": batch}))[0]
    assert small.execute("ingest", batch).success
    small.instance.run_storage.delete_run(first)  # killed between the two halves of delete_run
    before = remembered(small)
    assert prune_records(small.instance, datetime.now(UTC) + SOON).runs == 1
    if is_sqlite(small):
        assert not log_file(small, first).exists()
    else:
        assert events_of(small, first) == []
    assert prune_records(small.instance, datetime.now(UTC) + SOON).runs == 0
    assert remembered(small) == before


# --- artifacts


def champion(folder: Path, number: int, checkpoint: str) -> None:
    entry = ChampionEntry(
        number=number, action="promoted", model=("gbt", "cnn")[number % 2], mode="realistic",
        served="time", checkpoints={"time": checkpoint}, since=now(), by="test", why="",
        evidence={}, previous=None,
    )  # fmt: skip
    last = history.read_champion(folder)
    history.put_in_use(folder, entry, replaces=last)


def put(folder: Path, n_bytes: int, days: float) -> Path:
    """A folder with a manifest and a file, that many days old."""
    folder.mkdir(parents=True)
    for name, content in (("manifest.json", b"{}"), ("data", bytes(n_bytes - 2))):
        (folder / name).write_bytes(content)
    moment = datetime.now(UTC).timestamp() - days * DAY_S
    for path in (folder / "manifest.json", folder / "data", folder):
        os.utime(path, (moment, moment))
    return folder


def test_artifacts_go_in_order_until_the_budget_is_kept(tmp_path: Path) -> None:
    workspace = Workspace(store="none", artifacts=str(tmp_path / "artifacts"))
    root, kept = workspace.artifacts_path, workspace.champion_folder
    champion(kept, 1, "was")
    champion(kept, 2, "is")  # gbt_realistic
    a, b = root / "predictions" / "a.2026-01-01", root / "predictions" / "b.2026-01-01"
    scored = put(a / "gbt_realistic.time", 1000, 90)  # the champion's, and the oldest
    newest = put(a / "cnn_realistic.time", 1000, 5)
    older = put(a / "knn_realistic.time", 1000, 20)
    oldest = put(a / "knn_realistic.host", 1000, 30)
    alone = put(b / "knn_realistic.host", 1000, 60)
    copies = {name: put(kept / "checkpoints" / name, 1000, 50) for name in ("was", "is", "never")}
    fresh = put(kept / "checkpoints" / "now", 1000, 0)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = put(root / "batches" / "a.2026-01-01" / f".tmp-{process.pid}-x", 1000, 3)
    young = put(root / "batches" / "a.2026-01-01" / f".tmp-{process.pid}-y", 1000, 0)
    total = disk_usage(root).n_bytes

    def going(budget: float) -> list[Path]:
        limited = workspace.model_copy(update={"artifacts_budget_gb": budget / 1e9})
        return [item.path for item in items_to_discard(limited, disk_usage(root))]

    assert going(0) == [left]
    assert going(total - 1000) == [left]
    assert going(total - 1001) == [left, oldest]
    assert going(total - 2001) == [left, oldest, older]
    assert going(1) == [left, oldest, older, copies["never"]]
    limited = workspace.model_copy(update={"artifacts_budget_gb": 1e-9})
    gone = delete_items(items_to_discard(limited, disk_usage(root)))
    assert [item.path for item in gone] == [left, oldest, older, copies["never"]]
    assert disk_usage(root).n_bytes == total - 4000
    there = (scored, newest, alone, copies["was"], copies["is"], fresh, young)
    assert all((folder / "data").exists() for folder in there)


def test_what_a_killed_process_left_is_told_from_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.retention.DAY_S", -60)  # of any age
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = put(tmp_path / "a" / f".tmp-{process.pid}-x", 10, 0)
    alive = put(tmp_path / "a" / f".tmp-{os.getpid()}-x", 10, 0)
    before = put(tmp_path / "b" / f".tmp-{os.getpid()}-x", 10, 3)  # the number was given again
    other = put(tmp_path / "b" / ".tmp-named-otherwise", 10, 3)
    delete_items(disk_usage(tmp_path).unfinished)
    there = [folder.exists() for folder in (dead, alive, before, other)]
    assert there == [False, True, False, True]


def test_what_cannot_be_deleted_does_not_count_as_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = put(tmp_path / "a" / f".tmp-{os.getpid()}-x", 10, 3)
    monkeypatch.setattr("stages.retention.shutil.rmtree", lambda *_, **__: None)
    with new_instance(tmp_path / "home") as instance:
        pruned = prune(instance, Workspace(artifacts=str(tmp_path)))
    assert pruned.discards == []
    assert pruned.artifacts_bytes >= 10
    assert str(kept) in caplog.text


def test_nothing_goes_by_age_where_the_history_cannot_be_read(tmp_path: Path) -> None:
    workspace = Workspace(artifacts=str(tmp_path), artifacts_budget_gb=1e-9)
    for name in ("a", "b", "c"):
        put(tmp_path / "predictions" / "a.2026-01-01" / f"{name}.time", 10, 9)
    workspace.champion_folder.mkdir()
    (workspace.champion_folder / "champion.json").write_text("{}")
    with pytest.raises(history.ChampionError):
        items_to_discard(workspace, disk_usage(tmp_path))


# --- by command and by night


def test_the_command_says_what_would_go_and_then_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreBuilder(tmp_path / "store")
    store.add("lab-a", profile="io-walk", duration_s=20, start_ns=START_NS)
    artifacts, home = tmp_path / "artifacts", tmp_path / "home"
    with new_instance(home) as instance:
        Lab(store, artifacts, instance, TINY).ingest()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    paths = ["--store", str(store.root), "--artifacts", str(artifacts), "--json"]

    def told(*words: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["prune", *paths, *words])
        assert result.exit_code == OK, result.output
        return json.loads(result.stdout)

    dry = told("--dry-run")
    assert (dry["dry_run"], dry["records"]["runs"], last_pruned(artifacts)) == (True, 0, None)
    done = told("--older-than", "1d")
    assert json.loads((artifacts / PRUNED_FILE).read_text()) | {"dry_run": False} == done
    assert last_pruned(artifacts) == done["at"]
    shown = CliRunner().invoke(app, ["doctor", *paths])
    found = json.loads(shown.stdout)
    assert found["artifacts"]["pruned"] == done["at"]
    assert found["artifacts"]["bytes"]["batches"] > 0
    for wrong in ("0d", "30", "d", "-1d", "1w"):
        assert CliRunner().invoke(app, ["prune", *paths, "--older-than", wrong]).exit_code == USAGE


def test_a_dry_run_makes_no_records(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["prune", "--dry-run", "--artifacts", str(tmp_path), "--json"])
    assert (told.exit_code, list(tmp_path.iterdir())) == (OK, []), told.output
    assert json.loads(told.stdout)["records"]["runs"] == 0


def test_the_job_prunes(tmp_path: Path) -> None:
    workspace = Workspace(store=str(tmp_path), artifacts=str(tmp_path / "artifacts"))
    with new_instance(tmp_path / "home") as instance:
        for _ in range(2):
            result = prune_job.execute_in_process(
                instance=instance, resources={"workspace": resource_of(workspace)}
            )
            assert result.success
        assert last_pruned(workspace.artifacts_path)
        assert {run.status for run in instance.get_runs()} <= set(FINISHED)
        pruned = prune(instance, workspace, 1)
        assert (pruned.records.runs, pruned.discards, pruned.over) == (0, [], 0)
