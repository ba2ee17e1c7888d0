"""What the commands that serve share: where to listen, under which names, with which token."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import USAGE, existing_file, fail

Host = Annotated[
    str,
    typer.Option(metavar="ADDRESS", help="Address to listen on; any but loopback needs a token."),
]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Host name that clients use to reach the server; repeat for several."
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the token that every client must send."),
]
ReadOnly = Annotated[bool, typer.Option("--read-only", help="Show everything, change nothing.")]


def read_token(file: Path | None, variable: str) -> str | None:
    """The token of a file, or of an environment variable; None if neither is given."""
    if file is None:
        return os.environ.get(variable) or None
    try:
        return existing_file(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: must be a text file with a token: {error}", USAGE)


def listen(host: str, port: int, token: str | None, variable: str) -> socket.socket:
    """A socket on an address of this machine; what others can reach needs a token."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        fail(f"--host must be an address of this machine, got {host!r}", USAGE)
    addresses = [str(address[0]).partition("%")[0] for *_, address in found]
    if token is None and not all(ipaddress.ip_address(one).is_loopback for one in addresses):
        fail(
            f"--host {host} can be reached from other machines: give a token with --token-file or "
            f"{variable}, or listen on 127.0.0.1",
            USAGE,
        )
    family, _, _, _, address = found[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)  # Python adds the address
        fail(f"{host} port {port}: cannot listen there: {why}; choose another --port")


def url_of(host: str, port: int, names: Sequence[str] | None = None) -> str:
    """Where a browser finds a server; ``names`` are others by which clients may call its host."""
    if host in ("0.0.0.0", "::"):  # a browser cannot open the address that stands for all
        host = next(iter(names or ()), host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
