"""What the commands share: exit codes, documents and how they are shown. No command is here.

A command returns a ``Document``. ``with_json`` adds ``--json`` and prints the document as text or
as JSON; an error is printed on stderr and, with ``--json``, as ``error`` of the document too.
"""

from __future__ import annotations

import errno
import getpass
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from config.errors import PhasewatchError
from config.messages import address_of, addressed, unknown
from config.paths import expanded
from features.files import write_atomically
from pipelines.cli.progress import clear_line, log_to_stderr, track

if TYPE_CHECKING:
    from stages.workspace import Workspace

__all__ = ["log_to_stderr", "track"]

OK, FAILED, USAGE, REJECTED, MISMATCH = range(5)
INTERRUPTED = 130
DAGSTERS_INTERRUPT = "DagsterExecutionInterruptedError"
"""What Dagster makes of Ctrl-C: no ``Exception``. By name, as below."""

EXIT_CODES = {
    "SettingsError": USAGE,
    "StoreError": USAGE,
    "SimulationError": USAGE,
    "ContractMismatchError": MISMATCH,
    "EpisodeError": REJECTED,
    "BundleContractError": MISMATCH,
    "NotABundleError": USAGE,
    "KeyNameError": USAGE,
    "PhasewatchError": FAILED,  # every other one
    "KeyboardInterrupt": INTERRUPTED,
    DAGSTERS_INTERRUPT: INTERRUPTED,
}
"""Exit code of what may end any command; messages of errors are shown as they are.

By name, because importing the classes would load libraries that ``--help`` does not need.
"""

EXTRAS = {
    "base": ("numpy", "numba", "polars", "pyarrow", "pydantic", "safetensors", "zstandard"),
    "train": ("torch", "xgboost", "scikit-learn", "matplotlib", "jinja2"),
    "orchestrate": ("dagster", "dagster-webserver"),
    "serve": ("starlette", "uvicorn"),
    "sign": ("cryptography",),
}
"""What ``doctor`` looks for, by the extra that installs it."""

_LAST_COLUMN = 16  # characters at least: it wraps, the others may not


class Command(TyperCommand):
    """A command whose help shows arguments by their metavars, without their Python types."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # noqa: ARG005

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        arguments = [p.metavar for p in self.params if isinstance(p, TyperArgument) and p.metavar]
        return ["[OPTIONS]", *arguments]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """An empty argument is refused unless it is a text: a path would be the current folder."""
        texts = {
            opt
            for p in self.params
            if isinstance(p, TyperOption) and p.type_descriptor.annotation is str
            for opt in p.opts
        }
        for before, word in zip(["", *args], args, strict=False):
            option, given, value = word.partition("=") if word[:2] == "--" else (before, "=", word)
            if given and not value and option not in texts:
                name = option if option[:2] == "--" else "an argument"
                raise typer.BadParameter(f"{name} is empty; give a value, or leave it out", ctx)
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Table:
    """Rows to be shown in aligned columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


class Bytes(int):
    """A size: a number in JSON, ``1.2 GB`` for people."""

    def __str__(self) -> str:
        size = float(self)
        for unit in ("B", "kB", "MB"):
            if abs(size) < 999.5:
                return f"{size:.3g} {unit}"
            size /= 1000
        return f"{size:,.3g} GB" if size < 1000 else f"{size:,.0f} GB"


@dataclass(frozen=True)
class Document:
    """The result of a command: by default its fields are the JSON document."""

    def text(self) -> Iterator[str | Table]:
        """The document for people."""
        raise NotImplementedError

    @property
    def exit_code(self) -> int:
        return OK

    def as_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class CommandError(PhasewatchError):
    """A command cannot do its work: the message, the exit code and what is known so far."""

    def __init__(self, message: str, code: int, document: dict[str, Any]):
        super().__init__(message, code, document)  # all of it: it travels between processes
        self.code = code
        self.document = document

    def __str__(self) -> str:
        return str(self.args[0])


def fail(message: str, code: int = FAILED, **document: Any) -> NoReturn:
    """End the command with a message on stderr."""
    raise CommandError(message, code, document)


def exit_code_of(error: BaseException) -> int | None:
    """Exit code of an error that any command may meet; None: it is another one."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return USAGE
    kinds = (kind.__name__ for kind in type(error).__mro__)
    return next((EXIT_CODES[kind] for kind in kinds if kind in EXIT_CODES), None)


def with_json(function: Callable[..., Document | None]) -> Callable[..., None]:
    """A function that returns a ``Document`` as typer takes it: it prints, and has ``--json``."""

    @wraps(function)
    def run(as_json: bool = False, **arguments: Any) -> None:
        arguments = {n: expanded(v) if isinstance(v, Path) else v for n, v in arguments.items()}
        address = address_of(arguments)
        try:
            document = function(**arguments)
        except CommandError as error:
            show_error(str(error), error.document, as_json=as_json, address=address)
            raise typer.Exit(error.code) from None
        except BaseException as error:
            code = exit_code_of(error)
            if code is None:
                raise
            message = "interrupted" if code == INTERRUPTED else str(error)
            if isinstance(error, OSError):
                message = f"{error.filename}: {error.strerror}"
            show_error(message, {}, as_json=as_json, address=address)
            raise typer.Exit(code) from None
        if document is not None:  # None: a subcommand follows
            try:
                show(document, as_json=as_json, address=address)
            except BrokenPipeError:  # whoever reads has seen enough
                _give_up(sys.stdout)
            except OSError as error:
                _give_up(sys.stdout)
                note(f"standard output: {error.strerror}; the result is not shown")
                raise typer.Exit(FAILED) from None
            raise typer.Exit(document.exit_code)

    option = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
    keyword = inspect.Parameter.KEYWORD_ONLY
    as_json = inspect.Parameter("as_json", keyword, default=False, annotation=option)
    set_parameters(run, function, [as_json])
    return run


def set_parameters(
    run: Callable[..., Any], function: Callable[..., Any], added: Iterable[inspect.Parameter]
) -> None:
    """Have typer read the parameters of ``function``, and those added, as ``run``'s."""
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
    ]
    parameters += added
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def show(document: Document, *, as_json: bool, address: Mapping[str, str]) -> None:
    """Print a document: the one renderer of all commands.

    Args:
        address: options that the commands in it need.
    """
    clear_line()
    if as_json:
        typer.echo(json.dumps(_addressed(document.as_json(), address), indent=1))
        return
    for part in document.text():
        if isinstance(part, Table):
            _show_table(part)
        else:
            typer.echo(addressed(part, address))


def show_error(
    message: str,
    document: dict[str, Any],
    *,
    as_json: bool,
    address: Mapping[str, str] = MappingProxyType({}),
) -> None:
    note(addressed(message, address))
    if as_json:
        try:
            typer.echo(json.dumps(_addressed(document | {"error": message}, address), indent=1))
        except OSError:
            _give_up(sys.stdout)  # the message and the exit code say enough


def _addressed(value: Any, address: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _addressed(item, address) for name, item in value.items()}
    if isinstance(value, list):
        return [_addressed(item, address) for item in value]
    return addressed(value, address) if isinstance(value, str) else value


def not_installed(module: str) -> str:
    """The message for a library that is missing, with the extra that brings it."""
    library = {"sklearn": "scikit-learn"}.get(name := module.partition(".")[0], name)
    extra = next((extra for extra, names in EXTRAS.items() if library in names), "train")
    package = "phasewatch" if extra == "base" else f"phasewatch[{extra}]"
    return f"{library} is not installed: pip install '{package}'"


def note(message: str) -> None:
    """One line on stderr, beside the document; where nothing can be said there, nothing is."""
    try:
        clear_line()
        typer.echo(message, err=True)
    except OSError:
        _give_up(sys.stderr)


def open_streams() -> None:
    """Have all three standard streams open, and able to show any text.

    A file that is opened while one is closed would get its number, and with it what libraries
    and other processes write there.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are any bytes


def flush_output() -> None:
    """Write what is left of the output; where that fails, Python would say so with a trace."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _give_up(stream)


def _give_up(stream: TextIO) -> None:
    """Have a stream that takes no more lead nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def workspace_of(
    config: Path | None,
    store: Path | None = None,
    artifacts: Path | None = None,
    *,
    must_exist: bool = False,
    **settings: Any,
) -> Workspace:
    """The workspace that the options name.

    Args:
        must_exist: the artifacts folder must be there, because something in it is read.
        settings: win over the configuration, as the paths do; one that is false does not.
    """
    from stages.workspace import check_artifacts, read_workspace

    paths = {"store": store, "artifacts": artifacts}
    given = {name: str(path.absolute()) for name, path in paths.items() if path}
    workspace = read_workspace(config, given | {n: v for n, v in settings.items() if v})
    check_artifacts(workspace)
    if must_exist and not workspace.artifacts_path.is_dir():
        fail(
            f"{workspace.artifacts_path}: no such folder; name another with --artifacts, or make "
            "it: phasewatch run",
            USAGE,
        )
    return workspace


def existing(path: Path) -> Path:
    """The path of something that is to be read."""
    if not path.exists() and not path.is_symlink():
        folder = path.parent
        names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
        near = get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        fail(f"{path}: no such file or folder{hint}", USAGE)
    return path


def existing_file(path: Path) -> Path:
    """The same for a file."""
    if existing(path).is_dir():
        fail(f"{path}: must be a file, got a folder", USAGE)
    return path


def existing_checkpoint(path: Path) -> Path:
    """The same for a checkpoint, told by its name."""
    from models.checkpoint import SUFFIX

    if not existing_file(path).name.endswith(SUFFIX):
        fail(f"{path}: not a checkpoint; its name must end in {SUFFIX}", USAGE)
    return path


def existing_folder_of(out: Path) -> Path:
    """The path of something that is to be written, in a folder that is there."""
    if not out.absolute().parent.is_dir():
        fail(f"{out}: folder {out.absolute().parent} does not exist", USAGE)
    return out


def write(out: Path, content: bytes) -> None:
    """Write a file whole or not at all, or say why not; a pipe or device is written to."""
    try:
        if out.exists() and not out.is_file():  # a file in its place would be another thing
            out.write_bytes(content)
        else:
            write_atomically(out.resolve(), content)
    except OSError as error:
        fail(f"{out}: not written ({error.strerror})", USAGE)


def user_name() -> str:
    """The person at the terminal, as far as the system knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def one_of(name: str, value: str, known: Iterable[str]) -> str:
    """A value that must be one of the known ones."""
    known = list(known)
    if value not in known:
        fail(unknown(name, value, known), USAGE)
    return value


def _show_table(table: Table) -> None:
    """Borders on a terminal wide enough for them; otherwise aligned columns, never cut off."""
    texts = [[str(cell) for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *texts, strict=True)]
    if sys.stdout.isatty():
        from rich import box
        from rich import table as rich_table
        from rich.console import Console
        from rich.text import Text

        console = Console()
        if sum(widths[:-1]) + 3 * len(widths) + min(widths[-1], _LAST_COLUMN) <= console.width:
            shown = rich_table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for i, name in enumerate(table.columns):  # only the last one is wrapped
                shown.add_column(name, no_wrap=i < len(table.columns) - 1)
            for row in texts:
                shown.add_row(*map(Text, row))
            console.print(shown)
            return
    for cells in (table.columns, *texts):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        typer.echo(line.rstrip())
