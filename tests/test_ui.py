"""Dagster's web server behind the guard, as ``phasewatch ui`` starts it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from lab import LAUNCH, Ui, job, running

from pipelines.definitions import build_defs
from resources.runs import FINISHED, PROCESS_TAG

TOKEN = "correct-horse-battery"
Status = dg.DagsterRunStatus

pytestmark = pytest.mark.slow

WEBSOCKET = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "graphql-ws",
}  # fmt: skip
BACKFILL = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
    __typename ... on PythonError { message } } }"""


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with running(tmp_path_factory.mktemp("ui")) as started:
        yield started


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with running(tmp_path_factory.mktemp("viewer"), "--read-only", token=TOKEN) as started:
        yield started


def setting(**values: Any) -> dict[str, Any]:
    return {"resources": {"workspace": {"config": values}}}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "host"),
        ({"Origin": "https://evil.example"}, "origin"),
        ({"Origin": "null"}, "origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "origin"),
        ({"Content-Type": "text/plain"}, "graphql_form"),
        ({"Content-Type": "text/plain; application/json"}, "graphql_form"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "graphql_form"),
        ({"Content-Type": "application/graphql"}, "graphql_form"),
    ],
)
def test_strangers_ask_nothing_of_it(ui: Ui, headers: dict[str, str], code: str) -> None:
    status, text = ui.ask("POST", "/graphql", "{ version }", **headers)
    assert (status, json.loads(text)["code"]) == (403, code)


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/graphql?query=%7Bversion%7D", {}, "graphql_get"),
        ("HEAD", "/graphql?query=%7Bversion%7D", {}, "graphql_get"),
        ("GET", "//graphql/?query=%7Bversion%7D", {}, "graphql_get"),
        ("POST", "/graphql?query=%7Bversion%7D", {}, "graphql_form"),
        ("POST", "/%67raphql?query=%7Bversion%7D", {}, "graphql_form"),
        ("GET", "/graphql", WEBSOCKET | {"Origin": "https://evil.example"}, "origin"),
        ("GET", "/graphql", WEBSOCKET | {"Host": "evil.example"}, "host"),
        ("POST", "/report_asset_materialization/datasets", {}, "closed"),
        ("POST", "/report_asset_check/datasets?check_name=a&passed=true", {}, "closed"),
        ("POST", "/report_asset_observation/datasets", {}, "closed"),
        ("GET", "/server_info", {"Sec-Fetch-Site": "cross-site"}, "origin"),
        ("PUT", "/server_info", {"Sec-Fetch-Site": "same-site"}, "origin"),
    ],
)  # fmt: skip
def test_what_needs_no_body_does_nothing(
    ui: Ui, method: str, path: str, headers: dict[str, str], code: str
) -> None:
    status, text = ui.ask(method, path, **headers)
    assert status == 403
    assert method == "HEAD" or json.loads(text)["code"] == code
    assert ui.records()[2] == []


def test_many_questions_at_once_are_not_taken(ui: Ui) -> None:
    launch = {"query": LAUNCH, "variables": {"p": job("prune")}}
    before = ui.records()
    assert ui.ask("POST", "/graphql", json.dumps([launch, launch]))[0] in (400, 500)
    assert ui.records() == before


OWN = {
    "resources": {"io_manager": {}, "workspace": {"config": {"seed": 3}}},
    "execution": {"config": {"in_process": {"retries": {"disabled": {}}}}},
    "loggers": {"console": {"config": {"log_level": "INFO"}}},
}
FOREIGN: list[tuple[str, Any]] = [
    ("resources.workspace.config.artifacts", setting(artifacts="/tmp/other")),
    ("resources.workspace.config.artifacts", setting(artifacts="")),
    ("resources.workspace.config.artifacts", setting(artifacts={"env": "HOME"})),
    ("resources.workspace.config.exclusions", setting(exclusions="/etc/passwd")),
    ("resources.workspace.config.notify", setting(notify="sh -c id")),
    ("resources.workspace.config.store", OWN | setting(store="data/store")),
    ("resources.io_manager.config", {"resources": {"io_manager": {"config": {"base_dir": "/x"}}}}),
    ("execution.config.ray", {"execution": {"config": {"ray": {"ray": {"env_vars": ["A=1"]}}}}}),
    ("ops.datasets.inputs", {"ops": {"datasets": {"inputs": {"x": {"pickle": {"path": "/x"}}}}}}),
    ("inputs", {"inputs": {"x": {"json": {"path": "/x"}}}}),
]


@pytest.mark.parametrize(("named", "config"), FOREIGN)
def test_no_run_and_no_backfill_names_another_folder(ui: Ui, named: str, config: Any) -> None:
    """By none of the mutations that record one."""
    before = ui.records()
    launched = ui.graphql(LAUNCH, p=job("prune", config))["launchRun"]
    # Dagster itself refuses what a job has no place for; what it takes, we refuse
    assert launched["__typename"] in ("PythonError", "RunConfigValidationInvalid")
    taken = named.startswith("resources.workspace") or named == "resources.io_manager.config"
    assert named in launched.get("message", "") or not taken
    several = ui.graphql(
        "mutation($p: [ExecutionParams!]!) { launchMultipleRuns(executionParamsList: $p) "
        "{ __typename ... on LaunchMultipleRunsResult { launchMultipleRunsResult "
        "{ __typename } } } }",
        p=[job("prune", config)] * 2,
    )["launchMultipleRuns"]
    kinds = {one["__typename"] for one in several["launchMultipleRunsResult"]}
    assert not kinds & {"LaunchRunSuccess"}
    backfill = {
        "assetSelection": [{"path": ["datasets"]}], "partitionNames": ["host"],
        "runConfigData": config,
    }  # fmt: skip
    refused = ui.graphql(BACKFILL, p=backfill)["launchPartitionBackfill"]
    assert refused["__typename"] in ("PythonError", "RunConfigValidationInvalid")
    assert named in refused.get("message", "") or not taken
    assert ui.records() == before


def test_what_repeats_a_run_is_asked_again(ui: Ui) -> None:
    """A run of the command line may have another folder; repeated in the browser it may not."""
    config = setting(artifacts=str(ui.folder / "other"))
    with dg.DagsterInstance.from_config(str(ui.folder / "artifacts" / "dagster_home")) as instance:
        run = instance.create_run_for_job(
            build_defs().resolve_job_def("prune"), run_config=config, status=Status.FAILURE
        )
    again = job("prune", config)
    again["executionMetadata"] |= {"parentRunId": run.run_id, "rootRunId": run.run_id}
    refused = ui.graphql(
        "mutation($p: ExecutionParams!) { launchRunReexecution(executionParams: $p) "
        "{ __typename ... on PythonError { message } } }",
        p=again,
    )["launchRunReexecution"]
    assert refused["__typename"] == "PythonError"
    assert "resources.workspace.config.artifacts" in refused["message"]
    assert ui.records()[0] == [run.run_id]
    ui.graphql("mutation($r: String!) { deleteRun(runId: $r) { __typename } }", r=run.run_id)


def test_our_own_page_starts_runs(ui: Ui) -> None:
    here = {"Origin": f"http://127.0.0.1:{ui.port}", "Sec-Fetch-Site": "same-origin"}
    own = OWN | setting(
        store=str(ui.folder / "store"), artifacts=str(ui.folder / "artifacts"), notify=""
    )
    body = json.dumps({"query": LAUNCH, "variables": {"p": job("prune", own)}})
    status, text = ui.ask("POST", "/graphql", body, **here)
    launched = json.loads(text)["data"]["launchRun"]
    assert (status, launched["__typename"]) == (200, "LaunchRunSuccess"), text
    run = launched["run"]["runId"]
    assert ui.records()[0] == [run]
    with dg.DagsterInstance.from_config(str(ui.folder / "artifacts" / "dagster_home")) as instance:
        deadline = time.monotonic() + 600
        while instance.get_run_by_id(run).status not in FINISHED:  # type: ignore[union-attr]
            assert time.monotonic() < deadline, ui.log.read_text()
            time.sleep(0.5)
        done = instance.get_run_by_id(run)
        assert done
        assert done.status is Status.SUCCESS
        assert done.tags[PROCESS_TAG].startswith(f"{run}:{socket.gethostname()}:")


def test_it_serves_those_who_bear_the_token(viewer: Ui) -> None:
    status, text = viewer.ask("POST", "/graphql", "{ version }")
    assert (status, list(json.loads(text)["data"])) == (200, ["version"])
    assert viewer.ask("GET", "/")[0] == 200
    assert viewer.ask("GET", "/graphql", **WEBSOCKET)[0] == 101
    assert viewer.ask("GET", "/server_info", Authorization="Bearer other-horse-battery")[0] == 401


def test_what_only_shows_starts_nothing(viewer: Ui) -> None:
    launched = viewer.graphql(LAUNCH, p=job("prune"))["launchRun"]
    assert launched["__typename"] == "UnauthorizedError"
    assert viewer.ask("POST", "/report_asset_materialization/datasets")[0] == 403
    assert viewer.records() == ([], [], [])
