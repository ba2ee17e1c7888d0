"""What the commands share: exit codes, options, and how they speak. No command is here.

Exit codes: 0 ok, 1 failed, 2 usage, 3 data rejected, 4 contract mismatch.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from stages.workspace import Workspace

_LAST_COLUMN = 16  # characters at least: it wraps, the others may not

OK, FAILED, USAGE, REJECTED, MISMATCH = range(5)

_as_json = False


def _remember(as_json: bool) -> bool:
    global _as_json
    _as_json = as_json
    return as_json


JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout.", callback=_remember)
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
    typer.Option(
        envvar="PHASEWATCH_ARTIFACTS", help="Folder of what is made; wins over the configuration."
    ),
]


def workspace_of(
    config: Path | None,
    store: Path | None,
    artifacts: Path | None,
    *,
    made: bool = False,
    **settings: Any,
) -> "Workspace":
    """The workspace that these options name; leaves with USAGE where one of them is wrong.

    Args:
        made: there has to be an artefacts folder: something in it is to be read.
        settings: win over the configuration, as the paths do.
    """
    from stages.workspace import SettingsError, read_workspace

    paths = {"store": store, "artifacts": artifacts}
    given = {name: str(path.absolute()) for name, path in paths.items() if path is not None}
    with failing({SettingsError: USAGE}):
        workspace = read_workspace(config, given | settings)
    if made and not workspace.artifacts_path.is_dir():
        fail(
            f"{workspace.artifacts_path}: no such folder; name another with --artifacts, or make "
            "it: phasewatch run",
            USAGE,
        )
    return workspace


def fail(message: str, code: int = FAILED, **found: Any) -> NoReturn:
    """Say what is wrong on stderr, with ``--json`` as ``error`` of the document too, and leave."""
    typer.echo(message, err=True)
    if _as_json:
        say_json({**found, "error": message})
    raise typer.Exit(code)


@contextmanager
def failing(codes: Mapping[type[Exception], int]) -> Iterator[None]:
    """These errors are foreseen: leave with their message and code, the first that fits."""
    try:
        yield
    except tuple(codes) as error:
        fail(str(error), next(code for kind, code in codes.items() if isinstance(error, kind)))


def existing(path: Path) -> Path:
    """The path of something that is to be read; leaves with USAGE where nothing is there."""
    if not path.exists() and not path.is_symlink():
        fail(f"{path}: no such file or folder", USAGE)
    return path


def existing_file(path: Path) -> Path:
    """The same where a folder will not do."""
    if existing(path).is_dir():
        fail(f"{path}: a folder; name a file in it", USAGE)
    return path


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
