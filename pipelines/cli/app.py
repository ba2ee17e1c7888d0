"""The command line. Heavy libraries are imported by the commands that need them, not here."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from pipelines.cli import (
    champion,
    checkpoints,
    device,
    doctor,
    episodes,
    hub,
    predict,
    produce,
    prune,
    report,
    run,
    simulate,
    trust,
    ui,
)
from pipelines.cli.console import (
    FAILED,
    INTERRUPTED,
    MISMATCH,
    OK,
    REJECTED,
    USAGE,
    Command,
    flush_output,
    not_installed,
    open_streams,
    show_error,
    with_json,
)

__all__ = ["FAILED", "MISMATCH", "OK", "REJECTED", "USAGE", "app", "main"]

app = typer.Typer(
    name="phasewatch",
    help="Detects which phase of a compromise a virtual machine is in, from its telemetry.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: no boxes, no types of flags
)
for function in (
    run.run,
    run.sync,
    episodes.validate,
    episodes.extract,
    episodes.exclude,
    simulate.simulate,
    predict.predict,
    report.report,
    champion.champion,
    champion.promote,
    champion.rollback,
    device.bundle,
    checkpoints.inspect,
    trust.verify,
    doctor.doctor,
    prune.prune,
    hub.hub,
    ui.ui,
):
    app.command(cls=Command)(with_json(function))
for program in (device.live, device.enrol):  # their options are those of a device
    app.command(
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(program)
app.add_typer(checkpoints.contract_app, name="contract")
app.add_typer(produce.produce_app, name="produce")
app.add_typer(trust.keys_app, name="keys")
app.add_typer(trust.log_app, name="log")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"phasewatch {version('phasewatch')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")
    ] = False,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Detects which phase of a compromise a virtual machine is in, from its telemetry."""


def main() -> None:
    """Entry point: whatever happens ends in one message and an exit code."""
    open_streams()
    _speak_utf8()
    # a connection that Ctrl-C interrupts while it closes is logged with a traceback
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    try:
        app()
    except SystemExit as end:
        flush_output()
        if end.code == FAILED and _was_interrupted(end):
            sys.exit(INTERRUPTED)
        raise
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        flush_output()
        if "--debug" in sys.argv[1:]:
            raise
        show_error(_unexpected(error), {}, as_json="--json" in sys.argv[1:])
        sys.exit(FAILED)


def _speak_utf8() -> None:
    """Start anew in Python's UTF-8 mode where the locale has another encoding.

    Paths would otherwise mean one folder to Python and another to the libraries that read Parquet,
    and processes that this one starts would write in the locale's encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: what parses the options makes an error of its own of that."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _unexpected(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return not_installed(error.name)
    first_line = str(error).strip().partition("\n")[0]
    return (
        f"{type(error).__name__}: {first_line}\nThis is unexpected; "
        f"`phasewatch --debug {' '.join(sys.argv[1:])}` shows the traceback."
    )


if __name__ == "__main__":
    main()
