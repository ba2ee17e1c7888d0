"""The command that serves Dagster behind the guard: ``ui``."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

from config.messages import variable_of
from config.paths import base_folder
from pipelines.cli import options, serving
from pipelines.cli.console import USAGE, Document, fail, note, workspace_of
from pipelines.home import dagster_home

TOKEN = "PHASEWATCH_UI_TOKEN"
HOSTS = "PHASEWATCH_UI_HOSTS"  # where the web server's process finds the names
LOCATION = "phasewatch"


@dataclass(frozen=True)
class UiDocument(Document):
    """Where Dagster was until it was stopped."""

    url: str

    def text(self) -> Iterator[str]:
        return iter(())


def ui(
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
    host: serving.Host = "127.0.0.1",
    port: serving.Port = 3000,
    allow_host: serving.AllowHost = None,
    token_file: serving.TokenFile = None,
    read_only: serving.ReadOnly = False,
) -> UiDocument:
    """Serve Dagster's UI and daemon, guarded from other web pages.

    Registers the store's batches first, then serves until Ctrl-C or SIGTERM. The token
    may be in PHASEWATCH_UI_TOKEN instead of a file.
    """
    workspace = workspace_of(config, store, artifacts)
    token = serving.read_token(token_file, TOKEN)
    with serving.listen(host, port, token, TOKEN) as listener:  # that it is free
        port = listener.getsockname()[1]
    from hub.guard import Guard
    from pipelines.cli.execution import sync_only

    try:
        Guard(_nothing, hosts=allow_host or (), token=token)
    except ValueError as error:
        fail(str(error), USAGE)
    sync_only(workspace)
    url = serving.url_of(host, port, allow_host)
    os.environ |= {
        **_variables(config=config, store=store, artifacts=artifacts),
        "DAGSTER_HOME": str(dagster_home(workspace)),
        HOSTS: " ".join([host, *(allow_host or ())]),
        TOKEN: token or "",
    }
    note("ui: starting Dagster")
    Thread(
        target=_say_when_ready,
        args=(host, port, url + ("/?token=TOKEN" if token else "")),
        daemon=True,
    ).start()
    _develop(host, port, read_only=read_only)
    return UiDocument(url=url)


def _say_when_ready(host: str, port: int, url: str) -> None:
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            note(f"ui: {url}")
            return


async def _nothing(*_: Any) -> None:
    """An application, to try a token on."""


def _variables(**paths: Path | None) -> dict[str, str]:
    """The variables from which Dagster's processes read the same options."""
    return {variable_of(name): str(path.absolute()) for name, path in paths.items() if path}


def _develop(host: str, port: int, *, read_only: bool) -> None:
    """What ``dg dev`` does, with our web server in place of Dagster's."""
    from dagster._cli import dev
    from dagster._cli.workspace.cli_target import WorkspaceOpts  # type: ignore[attr-defined]

    # a background job of a script ignores SIGINT, and Dagster treats SIGTERM as it finds SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = dev.open_ipc_subprocess  # type: ignore[attr-defined]

    def start_guarded(parts: Sequence[str], **options: Any) -> Any:
        """Start the web server as ours, the daemon as it is, and nothing else."""
        words = list(parts)
        if words[1:3] == ["-m", "dagster_webserver"]:
            words[2] = "pipelines.webserver"
            words += ["--read-only"] * read_only
        elif words[1:3] != ["-m", "dagster._daemon"]:
            raise RuntimeError(f"Dagster starts a process that has no guard: {words[1:3]}")
        return start(words, **options)

    dev.open_ipc_subprocess = start_guarded  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workspace.yaml"
        code = {
            "module_name": "pipelines.definitions",
            "working_directory": str(base_folder()),
            "location_name": LOCATION,
        }
        file.write_text(yaml.safe_dump({"load_from": [{"python_module": code}]}), encoding="utf-8")
        dev.dev_command_impl(
            code_server_log_level="warning",
            log_level="info",
            log_format="colored",
            port=str(port),
            host=host,
            use_legacy_code_server_behavior=False,
            shutdown_pipe=None,
            verbose=False,
            workspace_opts=WorkspaceOpts(workspace=[str(file)]),
        )
