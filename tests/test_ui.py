"""Dagster's web server behind the guard, as ``phasewatch ui`` starts it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOKEN = "correct-horse-battery"

pytestmark = pytest.mark.slow

LAUNCH = """mutation { launchRun(executionParams: {mode: "default", selector: {
    repositoryLocationName: "phasewatch", repositoryName: "__repository__", jobName: "ingest"
}}) { __typename } }"""
WEBSOCKET = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "graphql-ws",
}  # fmt: skip


class Ui:
    """A running ``phasewatch ui --read-only``, on a store of nothing."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        (folder / "token").write_text(TOKEN)
        (folder / "store" / "episodes").mkdir(parents=True)
        (folder / "store" / "index.jsonl").touch()
        words = [
            *("--port", str(self.port), "--token-file", str(folder / "token"), "--read-only"),
            *("--store", str(folder / "store"), "--artifacts", str(folder / "artifacts")),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli.app", "ui", *words],
                cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
            )  # fmt: skip

    def ask(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> tuple[int, str]:
        """Status and text of an answer; the token is borne unless ``Authorization`` is given."""
        named = {"Authorization": f"Bearer {TOKEN}"} | headers
        if body is not None:
            named |= {"Content-Type": "application/json"}
            body = json.dumps({"query": body})
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, "" if answer.status == 101 else answer.read().decode()

    def wait(self) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with suppress(OSError):
                if self.ask("GET", "/server_info")[0] == 200:
                    return
            time.sleep(0.5)
        raise AssertionError(self.log.read_text())


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    running = Ui(tmp_path_factory.mktemp("ui"))
    try:
        running.wait()
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(90) == 0


def test_it_serves_those_who_bear_the_token(ui: Ui) -> None:
    status, text = ui.ask("POST", "/graphql", "{ version }")
    assert (status, list(json.loads(text)["data"])) == (200, ["version"])
    assert ui.ask("GET", "/")[0] == 200
    assert ui.ask("GET", "/graphql", **WEBSOCKET)[0] == 101
    assert ui.ask("GET", "/server_info", Authorization="Bearer other-horse-battery")[0] == 401


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/graphql", {"Host": "evil.example"}),
        ("POST", "/graphql", {"Origin": "https://evil.example"}),
        ("POST", "/graphql", {"Sec-Fetch-Site": "cross-site"}),
        ("GET", "/graphql?query=%7Bversion%7D", {}),
        ("GET", "/graphql", WEBSOCKET | {"Origin": "https://evil.example"}),
        ("POST", "/report_asset_materialization/datasets", {"Origin": "http://localhost:1"}),
        ("GET", "/server_info", {"Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_it_serves_no_stranger(ui: Ui, method: str, path: str, headers: dict[str, str]) -> None:
    body = "{ version }" if (method, path) == ("POST", "/graphql") else None
    status, text = ui.ask(method, path, body, **headers)
    assert status == 403
    assert json.loads(text)["code"] in ("host", "origin", "graphql_get")


def test_what_only_shows_starts_nothing(ui: Ui) -> None:
    status, text = ui.ask("POST", "/graphql", LAUNCH)
    assert (status, json.loads(text)["data"]["launchRun"]["__typename"]) == (
        200,
        "UnauthorizedError",
    )
    assert ui.ask("POST", "/report_asset_materialization/datasets")[0] == 401
