"""What a person's command is told: each thing once, whoever looks and however often."""

from __future__ import annotations

import fcntl
import json
import shlex
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from builders import StoreBuilder
from lab import TINY, Lab, new_instance
from typer.testing import CliRunner

from episodes.store import StoreError
from pipelines import notifications
from pipelines.automation import nightly
from pipelines.cli.app import FAILED, app
from pipelines.graph import build_defs
from pipelines.notifications import NOTIFIED_FILE, Notification, notify, notify_of_run
from pipelines.partitions import sync_batches
from pipelines.requests import MAX_FAILURES
from resources.workspace import resource_of
from stages.workspace import SettingsError, checked_workspace


class Told:
    """A command that appends what it is told to a file."""

    def __init__(self, folder: Path):
        self.file = folder / "told by the command.jsonl"
        self.command = shlex.join(["sh", "-c", f"cat >> '{self.file}'"])

    @property
    def news(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    @property
    def kinds(self) -> list[str]:
        return [each["kind"] for each in self.news]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


@pytest.fixture
def lab(tmp_path: Path, told: Told) -> Iterator[Lab]:
    """One batch, not ingested, and a file where a folder has to be: its ingest fails."""
    store = StoreBuilder(tmp_path / "store")
    store.populate(hosts=["lab-a"], profiles=["io-walk"], duration_s=20)
    with new_instance(tmp_path / "home") as instance:
        made = Lab(store, tmp_path / "artifacts", instance, TINY | {"notify": told.command})
        in_the_way = made.workspace.batch_folder(batch_of(made))
        in_the_way.parent.mkdir(parents=True)
        in_the_way.write_text("a file where a folder has to be")
        sync_batches(instance, made.workspace)
        yield made


def batch_of(lab: Lab) -> str:
    (batch,) = lab.workspace.listing().batches
    return batch


def tick(lab: Lab, cursor: str | None) -> str:
    """One evaluation of the sensor; returns its new cursor."""
    sensor = build_defs(workspace=lab.workspace).get_sensor_def("notifications")
    resources = {"workspace": resource_of(lab.workspace)}
    with dg.build_sensor_context(
        instance=lab.instance, resources=resources, cursor=cursor
    ) as context:
        sensor(context)
        assert context.cursor is not None
        return context.cursor


def night(lab: Lab, later: timedelta = timedelta()) -> Any:
    with dg.build_schedule_context(
        instance=lab.instance,
        scheduled_execution_time=datetime(2026, 12, 1, 2, tzinfo=UTC) + later,
        resources={"workspace": resource_of(lab.workspace)},
    ) as context:
        return nightly(context)


def failing(lab: Lab, tags: dict[str, str] | None = None) -> str:
    """A run that fails by itself; its id."""
    result = lab.execute("ingest", batch_of(lab), tags=tags)
    assert not result.success
    return result.run_id


# --- runs and checks


def test_a_run_that_fails_is_told_once(lab: Lab, told: Told) -> None:
    before = failing(lab)
    began = tick(lab, None)
    assert told.news == []  # what failed before the sensor was on is old
    run_id = failing(lab)
    after = tick(lab, began)
    (news,) = told.news
    assert (news["kind"], news["id"], news["run_id"]) == ("run_failed", f"run {run_id}", run_id)
    assert (news["job"], news["partition"]) == ("ingest", batch_of(lab))
    assert news["artifacts"] == str(lab.artifacts)
    assert "ingest" in news["reasons"][0]
    assert run_id != before
    tick(lab, after)
    tick(lab, began)  # a tick that is evaluated again
    assert len(told.news) == 1
    failing(lab)
    tick(lab, after)
    assert told.kinds == ["run_failed"] * 2


def test_a_run_that_dagster_starts_again_has_not_failed_yet(lab: Lab, told: Told) -> None:
    began = tick(lab, None)
    job = build_defs(workspace=lab.workspace).resolve_job_def("ingest")
    for will_retry in ("true", "false"):
        run = lab.instance.create_run_for_job(
            job, status=dg.DagsterRunStatus.STARTED, tags={"dagster/will_retry": will_retry}
        )
        lab.instance.report_run_failed(run, "Its process was killed.")
    tick(lab, began)
    (news,) = told.news
    assert (news["run_id"], news["reasons"]) == (run.run_id, ["Its process was killed."])


def test_a_check_that_fails_is_told_and_one_that_warns_is_not(lab: Lab, told: Told) -> None:
    @dg.asset
    def thing() -> None: ...

    def check(name: str, passed: bool, severity: dg.AssetCheckSeverity) -> Any:
        @dg.asset_check(asset=thing, name=name)
        def found() -> dg.AssetCheckResult:
            return dg.AssetCheckResult(
                passed=passed, severity=severity, description=f"it is {name}"
            )

        return found

    error, warn = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
    checks = [check("bad", False, error), check("fair", False, warn), check("good", True, error)]
    result = dg.materialize([thing, *checks], instance=lab.instance)
    assert result.success
    for _ in range(2):
        notify_of_run(lab.instance, lab.workspace, result.run_id)
    (news,) = told.news
    assert (news["kind"], news["asset"], news["check"]) == ("check_failed", "thing", "bad")
    assert news["reasons"] == ["it is bad"]


def test_a_command_tells_of_its_own_runs_and_the_sensor_not_again(
    lab: Lab, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(lab.instance.root_directory))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"resources": {"workspace": {"config": lab.settings}}}))
    began = tick(lab, None)
    words = ["run", "--ingest-only", "--config", str(config), "--store", str(lab.store.root)]
    ran = CliRunner().invoke(app, [*words, "--artifacts", str(lab.artifacts), "--json"])
    assert ran.exit_code == FAILED
    assert json.loads(ran.stdout)["error"]  # the command's words do not get into the document
    (news,) = told.news
    tick(lab, began)
    assert told.news == [news]


# --- nights


def test_a_night_that_does_nothing_for_a_reason_is_told_once(lab: Lab, told: Told) -> None:
    for _ in range(MAX_FAILURES):
        (request,) = night(lab)
        failing(lab, dict(request.tags))
    assert told.news == []
    for minutes in (0, 5, 180):
        assert "gave up" in str(night(lab, timedelta(minutes=minutes)))
    (news,) = told.news
    assert news["kind"] == "night_skipped"
    assert f"ingest {batch_of(lab)}: gave up after 3 failed runs" in news["reasons"][0]
    night(lab, timedelta(days=1))
    assert [each["id"].split()[1] for each in told.news] == ["2026-11-30", "2026-12-01"]


def test_a_night_with_nothing_to_do_or_under_way_is_not_told(lab: Lab, told: Told) -> None:
    lab.workspace.batch_folder(batch_of(lab)).unlink()
    (request,) = night(lab)
    job = build_defs(workspace=lab.workspace).resolve_job_def("ingest")
    started = lab.instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.STARTED,
        tags=dict(request.tags) | {"dagster/partition": batch_of(lab)},
    )
    assert "is started" in str(night(lab))
    lab.instance.report_run_canceled(started)
    assert told.news == []


def test_a_night_that_cannot_look_is_told_and_fails(lab: Lab, told: Told) -> None:
    (lab.store.root / "index.jsonl").unlink()
    (lab.store.root / "episodes").rename(lab.store.root / "elsewhere")
    for _ in range(2):
        with pytest.raises(StoreError):
            night(lab)
    (news,) = told.news
    assert (news["kind"], "StoreError" in news["reasons"][0]) == ("night_skipped", True)


# --- the command


def news_of(lab: Lab, name: str = "run 1") -> Notification:
    return Notification(id=name, kind="run_failed", reasons=["-"], artifacts=str(lab.artifacts))


def test_whoever_tells_at_the_same_time_one_of_them_does(lab: Lab, told: Told) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = [f"run {n % 2}" for n in range(16)]
        called = list(pool.map(lambda name: notify(lab.workspace, news_of(lab, name)), names))
        assert (sum(called), len(told.news)) == (2, 2)
        noted = lab.artifacts / NOTIFIED_FILE
        lines = noted.read_text().splitlines()
        assert sorted(json.loads(line)["id"] for line in lines) == ["run 0", "run 1"]

        with noted.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting = pool.submit(notify, lab.workspace, news_of(lab, "run 2"))
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            held.write('{"id": "run 2", "kind": "told by another process"}\n')
        assert not waiting.result(20)


@pytest.mark.parametrize(
    ("command", "said"), [("no-such-command", "No such file"), ("false", "exit code 1")]
)
def test_what_becomes_of_the_command_is_logged_only(
    lab: Lab, command: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    lab.settings = lab.settings | {"notify": command}
    began = tick(lab, None)
    failing(lab)
    tick(lab, began)
    assert [said in message for message in warned(caplog)] == [True]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if each.message.startswith("notify: ")]


def test_a_command_that_does_not_end_is_ended_with_all_it_started(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifications, "COMMAND_S", 2)
    pid = tmp_path / "pid"
    lab.settings = lab.settings | {"notify": f"sh -c 'sleep 600 & echo $! > {pid}; wait'"}
    assert notify(lab.workspace, news_of(lab))
    assert ["killed after" in message for message in warned(caplog)] == [True]
    started, deadline = int(pid.read_text()), time.monotonic() + 60
    while state_of(started) not in ("gone", "Z"):  # a killed process has to be scheduled once more
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state_of(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return stat.rpartition(")")[2].split()[0]


def test_without_a_command_nothing_is_noted(lab: Lab) -> None:
    lab.settings = TINY
    began = build_defs(workspace=lab.workspace).get_sensor_def("notifications")
    assert began.default_status is dg.DefaultSensorStatus.STOPPED
    assert not notify(lab.workspace, news_of(lab))
    assert not (lab.artifacts / NOTIFIED_FILE).exists()


def test_with_a_command_the_sensor_is_on(lab: Lab) -> None:
    sensor = build_defs(workspace=lab.workspace).get_sensor_def("notifications")
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


def test_a_command_line_must_be_one() -> None:
    with pytest.raises(SettingsError, match=r"notify must be a command line .*got 'sh -c .'"):
        checked_workspace({"notify": 'sh -c "'})


def test_another_command_is_no_other_work(lab: Lab) -> None:
    """What was given up stays so, and nothing becomes stale."""
    batch = batch_of(lab)
    before = lab.project.identity("ingest", batch)
    lab.settings = lab.settings | {"notify": f"{sys.executable} other.py"}
    assert lab.project.identity("ingest", batch) == before
