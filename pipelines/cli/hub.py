"""The command that serves the live page: ``hub``."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from config.paths import base_folder
from pipelines.cli import options
from pipelines.cli.console import (
    FAILED,
    USAGE,
    Document,
    existing_file,
    fail,
    log_to_stderr,
    note,
    workspace_of,
)

TOKEN = "PHASEWATCH_HUB_TOKEN"


@dataclass(frozen=True)
class Served(Document):
    """What a hub carried until it was stopped."""

    url: str
    events: int

    def text(self) -> Iterator[str]:
        yield f"stopped after {self.events} events"


def hub(
    config: options.Config = None,
    artifacts: options.Artifacts = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on; needs a token if not loopback."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port; 0: any that is free.")] = 8447,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name that clients reach it under; repeat for several."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"File with the token that clients must bear; or set {TOKEN}."
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Refuse events and answers.")
    ] = False,
    silent_after: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, help="When a host that sends nothing is silent."),
    ] = 20.0,
) -> Served:
    """Carry events from scorers to the live page.

    Serves until Ctrl-C or SIGTERM. Needs the extra serve.
    """
    token = _token(token_file)
    listener = _listen(host, port)
    if not all(_loopback(each) for each in _addresses(host)) and token is None:
        listener.close()
        fail(
            f"--host {host} can be reached from other machines: give a token with --token-file or "
            f"{TOKEN}, or listen on 127.0.0.1",
            USAGE,
        )
    from hub.decisions import LogError
    from hub.server import Hub, server

    log_to_stderr()
    url = _url(host, listener.getsockname()[1])
    try:
        carrier = Hub(_artifacts(config, artifacts) / "decisions", silent_after_s=silent_after)
        serving = server(
            carrier, hosts=[host, *(allow_host or ())], token=token, read_only=read_only,
            ready=lambda: note(f"hub: {url}" + ("/?token=TOKEN" if token else "")),
        )  # fmt: skip
    except (LogError, ValueError) as error:
        fail(str(error), FAILED if isinstance(error, LogError) else USAGE)
    # uvicorn raises the signal that ended it once more, for whoever was there before it
    signal.signal(signal.SIGTERM, lambda *_: None)
    serving.run(sockets=[listener])
    return Served(url=url, events=carrier.state.newest)


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        return existing_file(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: must be a text file with a token: {error}", USAGE)


def _artifacts(config: Path | None, artifacts: Path | None) -> Path:
    """The artifacts folder; the settings, which load much, are read only if they name it."""
    if artifacts is not None:
        return artifacts.absolute()
    if config is None:
        return base_folder() / "artifacts"
    return workspace_of(config).artifacts_path


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        fail(f"--host must be an address of this machine, got {host!r}", USAGE)
    return [(family, str(address[0])) for family, _, _, _, address in found]


def _loopback(address: tuple[socket.AddressFamily, str]) -> bool:
    return ipaddress.ip_address(address[1].partition("%")[0]).is_loopback


def _listen(host: str, port: int) -> socket.socket:
    family, address = _addresses(host)[0]
    try:
        return socket.create_server((address, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        fail(f"{host} port {port}: cannot listen there: {reason}; choose another --port")


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
