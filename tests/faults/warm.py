"""Commands in children of a process that has imported everything, so that a try costs no start.

``python -m faults.warm`` reads a request a line and answers each with a line. It imports, and runs
nothing: libraries start their threads when they are first used, and a child has only the thread
that forked it.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.table import Ran


@dataclass
class Child:
    """A command under way, in a process of its own."""

    server: Warm
    pid: int
    out: Path
    err: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, limit_s: float = 60.0) -> Ran:
        """What became of it; past the limit it is ended."""
        answer = self.server.ask(do="wait", pid=self.pid, limit=limit_s)
        out, err = (path.read_text(errors="replace") for path in (self.out, self.err))
        return Ran(answer["code"], out, err, answer["hung"])


class Warm:
    """The process whose children the commands are; one for all tries of a run of the bench."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.warm"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # as pytest has set it
        )  # fmt: skip
        self._count = 0

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        folder: Path,
        *words: str | Path,
        env: Mapping[str, str | None] | None = None,
        call: str = "pipelines.cli.app:main",
        prelude: str = "",
        out: str = "",
        err: str = "",
    ) -> Child:
        """Start ``phasewatch`` with these words, or call something with them.

        Args:
            folder: where what it says is kept.
            env: variables that it has beside ours; None: it does not have it.
            call: module and function; with another than the usual one, the words are its arguments.
            prelude: Python that it runs first.
            out, err: its streams, if they are to be others than files in the folder; "closed".
        """
        self._count += 1
        folder.mkdir(parents=True, exist_ok=True)
        said, told = folder / f"said-{self._count}", folder / f"err-{self._count}"
        said.touch()
        told.touch()
        answer = self.ask(
            do="start", words=list(map(str, words)), env=dict(env or {}), prelude=prelude,
            call=call, out=out or str(said), err=err or str(told),
        )  # fmt: skip
        return Child(self, answer["pid"], said, told)


_warm: list[Warm] = []


def warm() -> Warm:
    """The one process; it ends with this one."""
    if not _warm:
        _warm.append(Warm())
    return _warm[0]


# --- the process itself


FEW = ("gbt", "cnn")


def _import_all() -> None:
    """Import what commands import, with two models: a kind of input each."""
    import models.registry as registry

    registry.MODELS = {name: registry.MODELS[name] for name in FEW}
    registry.VARIANTS = tuple(v for v in registry.VARIANTS if v.model in FEW)
    for name in ("dagster._core.execution.api", "torch", "xgboost", "matplotlib.figure"):
        importlib.import_module(name)
    importlib.import_module("faults.kills")
    for room in ("stages", "pipelines", "pipelines.cli", "models", "evaluation", "simulation"):
        package = importlib.import_module(room)
        for module in pkgutil.iter_modules(package.__path__):
            if module.name not in ("webserver", "__main__"):
                importlib.import_module(f"{room}.{module.name}")


def _child(request: dict[str, Any]) -> None:
    for stream, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        if path != "closed":
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.dup2(handle, stream)
            os.close(handle)
    for stream, name in ((1, "out"), (2, "err")):
        if request[name] == "closed":
            os.close(stream)
            setattr(sys, f"std{name}", None)  # as Python does
    for name, value in request["env"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    exec(request["prelude"], {})
    module, _, function = request["call"].partition(":")
    called = getattr(importlib.import_module(module), function)
    if module == "pipelines.cli.app":
        sys.argv = ["phasewatch", *request["words"]]
        called()
    else:
        called(*request["words"])


def _finish(run: Callable[[], None]) -> int:
    """Run and end as Python ends: its exit code, and a stack trace of what nobody caught."""
    code = 0
    try:
        run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            os.write(2, f"Traceback (most recent call last): {error}".encode())  # as Python
            code = 120
    return code


def _wait(pid: int, limit_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + limit_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return {"code": os.waitstatus_to_exitcode(status), "hung": False}
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return {"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "hung": True}
        time.sleep(0.005)


def main() -> None:
    _import_all()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "wait":
            answer = _wait(request["pid"], request["limit"])
        else:
            pid = os.fork()
            if not pid:
                os._exit(_finish(lambda: _child(request)))  # noqa: B023
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
