"""What the commands share: exit codes, options, and how they speak. No command is here.

Exit codes: 0 ok, 1 failed, 2 usage, 3 data rejected, 4 contract mismatch.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

_LAST_COLUMN = 16  # characters at least: it wraps, the others may not

OK, FAILED, USAGE, REJECTED, MISMATCH = range(5)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
CheckpointArgument = Annotated[
    Path, typer.Argument(help="A .ckpt.json; its sidecar lies beside it.")
]

ConfigOption = Annotated[
    Path | None,
    typer.Option(envvar="PHASEWATCH_CONFIG", help="Run configuration (YAML): config/default.yaml."),
]
RunStoreOption = Annotated[
    Path | None,
    typer.Option(envvar="PHASEWATCH_STORE", help="Episode store; wins over the configuration."),
]
RunArtifactsOption = Annotated[
    Path | None,
    typer.Option(envvar="PHASEWATCH_ARTIFACTS", help="Where to write; wins likewise."),
]


def overrides_of(store: Path | None, artifacts: Path | None) -> dict[str, str]:
    """What these two options set in the configuration."""
    given = {"store": store, "artifacts": artifacts}
    return {name: str(path.absolute()) for name, path in given.items() if path is not None}


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say what is wrong on stderr and leave."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def say_json(document: Any) -> None:
    """The one document of a command's ``--json``."""
    typer.echo(json.dumps(document, indent=1))


def track(items: Sequence, what: str) -> Iterable:
    """The items, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    return bar(items, what, console=console, transient=True)


def say_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on a terminal wide enough for it; else aligned columns that nothing cuts off."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console()
        if sum(widths[:-1]) + 3 * len(widths) + min(widths[-1], _LAST_COLUMN) <= console.width:
            table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
            for row in texts:
                table.add_row(*map(Text, row))
            console.print(table)
            return
    for row in (columns, *texts):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())
