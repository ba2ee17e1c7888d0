"""The command that serves the live page: ``hub``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from config.paths import base_folder
from hub.client import PORT
from live.silence import SCORER_SILENT_S
from pipelines.cli import options, serving
from pipelines.cli.console import (
    FAILED,
    USAGE,
    Document,
    fail,
    log_to_stderr,
    note,
    workspace_of,
)

TOKEN = "PHASEWATCH_HUB_TOKEN"


@dataclass(frozen=True)
class HubDocument(Document):
    """What a hub carried until it was stopped."""

    url: str
    events: int

    def text(self) -> Iterator[str]:
        yield f"stopped after {self.events} events"


def hub(
    config: options.Config = None,
    artifacts: options.Artifacts = None,
    host: serving.Host = "127.0.0.1",
    port: serving.Port = PORT,
    allow_host: serving.AllowHost = None,
    token_file: serving.TokenFile = None,
    read_only: serving.ReadOnly = False,
    silent_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="A live host that sends nothing for this long counts as silent.",
        ),
    ] = SCORER_SILENT_S,
    log_windows: Annotated[
        bool, typer.Option("--log-windows", help="Log every window, not only what changes.")
    ] = False,
) -> HubDocument:
    """Carry live events from scorers and producers to the live page.

    Serves until Ctrl-C or SIGTERM. The token may be in PHASEWATCH_HUB_TOKEN instead of a file.
    """
    token = serving.read_token(token_file, TOKEN)
    listener = serving.listen(host, port, token, TOKEN)
    from hub.decisions import LogError
    from hub.server import Hub, build_server

    log_to_stderr()
    url = serving.url_of(host, listener.getsockname()[1], allow_host)
    try:
        carrier = Hub(
            _artifacts(config, artifacts) / "decisions", silent_after_s=silent_after,
            windows=log_windows,
        )  # fmt: skip
        running = build_server(
            carrier, hosts=[host, *(allow_host or ())], token=token, read_only=read_only,
            ready=lambda: note(f"hub: {url}" + ("/?token=TOKEN" if token else "")),
        )  # fmt: skip
    except (LogError, ValueError) as error:
        fail(str(error), FAILED if isinstance(error, LogError) else USAGE)
    # uvicorn raises the signal that ended it once more, for whoever was there before it
    signal.signal(signal.SIGTERM, lambda *_: None)
    running.run(sockets=[listener])
    return HubDocument(url=url, events=carrier.state.newest)


def _artifacts(config: Path | None, artifacts: Path | None) -> Path:
    """The artifacts folder; the settings, which load much, are read only if they name it."""
    if artifacts is not None:
        return artifacts.absolute()
    if config is None:
        return base_folder() / "artifacts"
    return workspace_of(config).artifacts_path
