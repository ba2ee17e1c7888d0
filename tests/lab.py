"""Labs: a small synthetic store, artifacts and a Dagster instance; and a running web server."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from builders import PROFILES, StoreBuilder

from champion import history
from champion.history import (
    SERVED_RECIPE,
    TRAINING_FILE,
    ChampionEntry,
    checkpoint_copy_folder,
    copy_checkpoint,
    now,
    read_champion,
    training_digest,
)
from datasets.splits import RECIPES
from models.checkpoint import Checkpoint, checkpoint_path, load_checkpoint
from models.registry import MODELS, find_variant
from pipelines.graph import build_defs
from pipelines.partitions import sync_batches
from resources.guards import last_metadata
from resources.recording import kept_open
from stages.alarm_rules import read_alarm_rule
from stages.champion import files_to_copy
from stages.device_bundle import bundle_files, write_bundle
from stages.project import Project
from stages.scoring import Scorer
from stages.workspace import Workspace

ROOT = Path(__file__).parent.parent
RECIPE = "sample"
HAD = [recipe for recipe in RECIPES if recipe != "session"]
"""The recipes that a store of one session gives, as every lab's is."""
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


POSTGRES = next(
    (
        Path(folder)
        for folder in (*sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin"))), "/usr/bin")
        if Path(folder, "initdb").exists()
    ),
    None,
)
"""Where PostgreSQL's server is; None: this machine has none."""


@dataclass
class Lab:
    """A store, an artefacts folder and a Dagster instance, with jobs to run on them."""

    store: StoreBuilder
    artifacts: Path
    instance: dg.DagsterInstance
    settings: dict[str, Any]

    @property
    def workspace(self) -> Workspace:
        return Workspace(store=str(self.store.root), artifacts=str(self.artifacts), **self.settings)

    @property
    def project(self) -> Project:
        """What is on disk now."""
        return Project(self.workspace)

    def recorded(self, output: str, partition: str | None = None) -> dict[str, Any]:
        """What Dagster recorded of the last materialization of an asset."""
        return dict(last_metadata(self.instance, output, partition) or {})

    def execute(
        self,
        job: str,
        partition: str,
        *,
        instance: dg.DagsterInstance | None = None,
        definitions: dg.Definitions | None = None,
        only: list[dg.AssetKey] | None = None,
        config: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        definitions = definitions or build_defs(workspace=self.workspace)
        instance = instance or self.instance
        with kept_open(instance):
            return definitions.resolve_job_def(job).execute_in_process(
                run_config=QUIET | (config or {}),
                instance=instance,
                partition_key=partition,
                asset_selection=only,
                tags=tags,
                raise_on_error=False,
            )

    def ingest(self) -> list[str]:
        """Ingest the stale batches; returns them."""
        stale = sync_batches(self.instance, self.workspace).stale
        for batch in stale:
            result = self.execute("ingest", batch)
            assert result.success, failure(result)
        return stale


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the failed steps of a run said."""
    said = []
    for event in result.get_step_failure_events():
        data = event.step_failure_data
        if data.user_failure_data and data.user_failure_data.description:
            said.append(f"{event.step_key}: {data.user_failure_data.description}")
        else:
            error = data.error
            while error and error.cause:
                error = error.cause
            said.append(f"{event.step_key}: {error.message if error else ''}")
    return "\n".join(said)


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """Asset -> metadata, of everything a run materialised."""
    return {
        event.asset_key.to_user_string(): {
            name: value.value for name, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }


def settings_of(model: str, values: dict[str, Any]) -> dict[str, Any]:
    """Of these values, those that the model has a setting for."""
    return {
        n: value for n, value in values.items() if n in MODELS[model].config.__dataclass_fields__
    }


SMALL = {
    "n_rounds": 12, "max_depth": 3, "early_stopping_rounds": 5, "n_threads": 1, "n_components": 8,
    "width": 8, "depth": 1, "epochs": 2, "n_heads": 2,
    "trees": {"n_rounds": 12, "max_depth": 3, "early_stopping_rounds": 5, "n_threads": 1},
}  # fmt: skip
"""Makes the training of any model a matter of a second."""

TINY: dict[str, Any] = {
    "models": {model: settings_of(model, SMALL) for model in MODELS},
    "splits": {"test_share": 0.34, "val_share": 0.34, "seed": 2},
    "report": {"replicates": 200},
    "device": "cpu",
}


def new_instance(home: Path) -> dg.DagsterInstance:
    """A Dagster instance that remembers, in a folder of its own."""
    home.mkdir()
    return dagster_at(home)


def dagster_at(home: Path) -> dg.DagsterInstance:
    """What the Dagster of a folder remembers."""
    return dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}})


def build_lab(root: Path, instance: dg.DagsterInstance) -> Lab:
    store = StoreBuilder(root / "store")
    store.populate(profiles=PROFILES[:3], variants=3, duration_s=40)
    return Lab(store, root / "artifacts", instance, TINY)


def put_in_use(lab: Lab, model: str, folder: Path | None = None) -> ChampionEntry:
    """Make a model champion without a trial: its checkpoint of the one recipe serves all."""
    folder = folder or lab.workspace.champion_folder
    chosen = find_variant(model, "realistic")
    path = checkpoint_path(lab.workspace.checkpoint_folder(RECIPE), chosen)
    files = files_to_copy(lab.project, RECIPE, chosen, serves=True).files
    kept = dict.fromkeys(HAD, copy_checkpoint(folder, path, files))
    rule = read_alarm_rule(lab.project.existing(f"alarm_rules/{chosen.name}", RECIPE))
    before = read_champion(folder)
    training = training_digest(
        pl.read_parquet(checkpoint_copy_folder(folder, kept[SERVED_RECIPE]) / TRAINING_FILE)
    )
    champion = ChampionEntry(
        number=0, action="promoted", model=model, mode="realistic", served=SERVED_RECIPE,
        checkpoints=kept, since=now(), by="test", why="", evidence={}, previous=None,
        alarm_rules=dict.fromkeys(HAD, rule.id), training=dict.fromkeys(HAD, training),
    )  # fmt: skip
    return history.put_in_use(folder, champion, replaces=before)


def checkpoint_of(lab: Lab, model: str, mode: str = "realistic") -> Checkpoint:
    """A checkpoint of the one recipe that a lab trains."""
    folder = lab.workspace.checkpoint_folder(RECIPE)
    variant = find_variant(model, mode)
    return load_checkpoint(checkpoint_path(folder, variant), lab.workspace.layout)


def bundle_of(lab: Lab, model: str, folder: Path) -> None:
    """Write the device bundle of a realistic checkpoint."""
    scorer = Scorer(lab.project, checkpoint_of(lab, model))
    write_bundle(folder, bundle_files(scorer))


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A server of its own on a socket in ``folder``; its URL."""
    assert POSTGRES is not None
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        shutil.chown(folder, user)
    data = folder / "data"
    subprocess.run(
        [POSTGRES / "initdb", "-D", data, "-U", "dagster", "-A", "trust", "--no-sync"],
        user=user,
        cwd=folder,
        check=True,
        capture_output=True,
    )
    server = subprocess.Popen(
        [POSTGRES / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="],
        user=user,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while subprocess.run([POSTGRES / "pg_isready", "-q", "-h", folder], check=False).returncode:
            assert server.poll() is None, "PostgreSQL does not start"
            time.sleep(0.1)
        yield f"postgresql+psycopg2://dagster@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # at once, clients or not
        server.wait(90)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of the workers to ask for it makes, and the others wait for."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    made = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = root / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(made)
    return made


@contextmanager
def copy_of(template: Path, root: Path) -> Iterator[Lab]:
    """A lab of one's own, as one that ``once`` made stands there."""
    shutil.copytree(template, root, dirs_exist_ok=True)
    with dagster_at(root / "home") as instance:
        yield Lab(StoreBuilder.reopen(root / "store"), root / "artifacts", instance, TINY)


# --- a running web server

LAUNCH = """mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {
    __typename ... on PythonError { message } ... on LaunchRunSuccess { run { runId } } } }"""


class Ui:
    """A running ``phasewatch ui``, on a store of nothing."""

    def __init__(self, folder: Path, *options: str, token: str | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.folder, self.token = folder, token
        (folder / "store" / "episodes").mkdir(parents=True)
        (folder / "store" / "index.jsonl").touch()
        words = [
            *("--port", str(self.port), *options),
            *("--store", str(folder / "store"), "--artifacts", str(folder / "artifacts")),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
        environment |= {"PHASEWATCH_UI_TOKEN": token} if token else {}
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
        named = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if body is not None:
            named |= {"Content-Type": "application/json"}
            body = body if body.startswith(('{"', "[")) else json.dumps({"query": body})
        named |= headers
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)) as connection:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, "" if answer.status == 101 else answer.read().decode()

    def graphql(self, query: str, **variables: Any) -> Any:
        """The data of an answer; its status is 500 if an error is part of it."""
        body = json.dumps({"query": query, "variables": variables})
        _, text = self.ask("POST", "/graphql", body)
        document = json.loads(text)
        assert "errors" not in document, text
        return document["data"]

    def records(self) -> tuple[list[str], list[str], list[str]]:
        """The ids of runs and of backfills, and the assets that were ever materialized."""
        found = self.graphql(
            "{ runsOrError { ... on Runs { results { runId } } } partitionBackfillsOrError "
            "{ ... on PartitionBackfills { results { id } } } assetNodes { id "
            "assetMaterializations(limit: 1) { timestamp } } }"
        )
        return (
            [run["runId"] for run in found["runsOrError"]["results"]],
            [one["id"] for one in found["partitionBackfillsOrError"]["results"]],
            [node["id"] for node in found["assetNodes"] if node["assetMaterializations"]],
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with suppress(OSError):
                if self.ask("GET", "/server_info")[0] == 200:
                    return
            time.sleep(0.5)
        raise AssertionError(self.log.read_text())


@contextmanager
def running(folder: Path, *options: str, token: str | None = None) -> Iterator[Ui]:
    started = Ui(folder, *options, token=token)
    try:
        started.wait()
        yield started
    finally:
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(90) == 0


def job(name: str, config: Any = None, tags: dict[str, str] | None = None) -> dict[str, Any]:
    """What the launchpad sends for a job."""
    return {
        "mode": "default",
        "runConfigData": config or {},
        "selector": {
            "repositoryLocationName": "phasewatch", "repositoryName": "__repository__",
            "jobName": name,
        },
        "executionMetadata": {
            "tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]
        },
    }  # fmt: skip
