"""The command line. Heavy libraries are imported by the commands that need them, not here."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, NoReturn

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
    DAGSTERS_INTERRUPT,
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
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command below it, too
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


_COLLECTED_AT = 10_000
"""New objects before Python looks for cycles of garbage. Of an import, which keeps nearly all, it
would look through everything again and again: a tenth of the start of a command."""


def main() -> None:
    """Entry point: whatever happens ends in one message and an exit code."""
    open_streams()
    _speak_utf8()
    gc.set_threshold(_COLLECTED_AT)
    # a connection that Ctrl-C interrupts while it closes is logged with a traceback
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    was_interrupted = _watch_interrupts()
    try:
        app()
    except SystemExit as end:
        flush_output()
        if end.code == INTERRUPTED or (end.code == FAILED and was_interrupted()):
            _end_interrupted()
        raise
    except KeyboardInterrupt:
        _end_interrupted()
    except Exception as error:
        flush_output()
        if "--debug" in sys.argv[1:]:
            raise
        if was_interrupted():
            show_error("interrupted", {}, as_json="--json" in sys.argv[1:])
            _end_interrupted()
        show_error(_unexpected(error), {}, as_json="--json" in sys.argv[1:])
        sys.exit(FAILED)
    finally:
        gc.freeze()  # Python would look for garbage among the million objects of a large store


def _speak_utf8() -> None:
    """Start anew in Python's UTF-8 mode where the locale has another encoding.

    Paths would otherwise mean one folder to Python and another to the libraries that read Parquet,
    and processes that this one starts would write in the locale's encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _watch_interrupts() -> Callable[[], bool]:
    """Let no Ctrl-C be lost, and tell later whether one came.

    Libraries may turn it into another error, so the signal itself is noted. Raised in a callback
    that cannot pass it on, it is sent again.
    """
    noted, notes = os.pipe()
    os.set_blocking(noted, False)
    os.set_blocking(notes, False)
    signal.set_wakeup_fd(notes, warn_on_full_buffer=False)
    shown_by = sys.unraisablehook

    def again(ignored: sys.UnraisableHookArgs) -> None:
        if ignored.exc_type.__name__ not in ("KeyboardInterrupt", DAGSTERS_INTERRUPT):
            shown_by(ignored)
            return
        timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT])
        timer.daemon = True
        timer.start()

    def came() -> bool:
        with suppress(BlockingIOError):
            return signal.SIGINT in os.read(noted, 1_000_000)
        return False

    sys.unraisablehook = again
    return came


def _end_interrupted() -> NoReturn:
    """End at once: where threads of libraries are still at work, Python's own end would abort."""
    atexit._run_exitfuncs()  # names of semaphores are given back, without a warning
    flush_output()
    os._exit(INTERRUPTED)


_ENVIRONMENT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors of the operating system that a user can mend."""


def _unexpected(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return not_installed(error.name)
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT and error.filename:
        return f"{error.filename}: {error.strerror}"
    first_line = str(error).strip().partition("\n")[0]
    return (
        f"{type(error).__name__}: {first_line}\nThis is unexpected; "
        f"`phasewatch --debug {' '.join(sys.argv[1:])}` shows the traceback."
    )


if __name__ == "__main__":
    main()
