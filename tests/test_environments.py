"""Where phasewatch runs: homes, caches, encodings, links."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import typer
from builders import StoreBuilder

from config import paths
from config.disk import folder_lock
from config.paths import DAGSTER_HOME, cache_folder, unusable_home
from episodes.store import find_archive
from features.files import write_atomically
from hub.decisions import DecisionLog
from pipelines.cli.console import (
    INTERRUPTED,
    CommandError,
    user_name,
    with_json,
    workspace_of,
    write,
)
from pipelines.home import dagster_instance
from pipelines.notifications import Notification, notify
from stages.workspace import SettingsError, Workspace, read_workspace

ROOT = Path(__file__).parent.parent
ROOMS = sorted({path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / "tests"})


def _text_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that open a text file and do not name its encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        attribute = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if attribute in ("read_text", "write_text"):
            if len(node.args) <= (attribute == "write_text"):
                yield node
        elif attribute == "open" or (isinstance(node.func, ast.Name) and node.func.id == "open"):
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            if isinstance(owner, ast.Name) and owner.id in ("os", "tarfile", "webbrowser"):
                continue
            at = 0 if owner else 1
            mode = next((k.value for k in node.keywords if k.arg == "mode"), None) or (
                node.args[at] if len(node.args) > at else ast.Constant("r")
            )
            if not isinstance(mode, ast.Constant) or "b" not in str(mode.value):
                yield node


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_every_text_file_names_its_encoding(room: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sorted(room.rglob("*.py"))
        for call in _text_calls(ast.parse(path.read_bytes()))
    ]
    assert found == []


@pytest.mark.parametrize("name", ["a?b", "a%20b", "100%", "a\nb", "a\tb", "a\x7fb"])
def test_a_home_whose_records_would_be_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    problem = unusable_home(tmp_path / name / DAGSTER_HOME, tmp_path / name)
    assert problem
    assert "\n" not in problem
    assert not (tmp_path / name).exists()
    workspace = Workspace(artifacts=str(tmp_path / name))
    with pytest.raises(SettingsError, match="DAGSTER_HOME"), dagster_instance(workspace):
        pass


def test_a_home_that_is_no_text_is_refused(tmp_path: Path) -> None:
    problem = unusable_home(tmp_path / "a\udce4b", tmp_path / "artifacts")
    assert problem
    assert problem.isascii()


def test_a_home_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: mode == os.F_OK)  # no mode stops root
    workspace = Workspace(artifacts=str(tmp_path / "artifacts"))
    with pytest.raises(SettingsError, match="DAGSTER_HOME"), dagster_instance(workspace):
        pass


@pytest.mark.parametrize("name", ["a b", "a#b", "ä", "a'b", 'a"b', "a;b", "a&b", "~", "a:b"])
def test_any_other_home_can_be_used(tmp_path: Path, name: str) -> None:
    assert unusable_home(tmp_path / name / DAGSTER_HOME, tmp_path / name) is None


@pytest.mark.parametrize("setting", ["store", "artifacts", "exclusions"])
def test_a_path_that_is_no_text_is_refused(setting: str) -> None:
    with pytest.raises(SettingsError, match=f"{setting} must be .* Unicode text"):
        read_workspace(None, {setting: "/tmp/a\udce4b"})


def test_an_option_that_is_not_given_leaves_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    settings = f"{{artifacts: {tmp_path}, require_signatures: true}}"
    config.write_text(f"resources: {{workspace: {{config: {settings}}}}}")
    assert workspace_of(config, require_signatures=False).require_signatures
    assert workspace_of(None, None, tmp_path, force=True).force


def test_a_user_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert user_name() == "unknown"


def test_a_home_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    workspace = Workspace(artifacts=str(tmp_path))
    home = tmp_path / DAGSTER_HOME
    with dagster_instance(workspace) as instance:
        instance.add_dynamic_partitions("batch", ["a"])
    assert {"dagster.yaml", "history", "schedules"} <= {path.name for path in home.iterdir()}
    assert not list(home.glob(".tmp-*"))
    (home / "schedules").rename(tmp_path / "gone")  # as a kill between the two would leave it
    with dagster_instance(workspace) as instance:
        assert instance.get_dynamic_partitions("batch") == ["a"]
        assert instance.all_instigator_state() == []


def test_caches_go_where_this_user_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setattr(paths, "CLONE", in_the_way)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "phasewatch"
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"phasewatch-{os.geteuid()}"
    assert cache_folder() == own
    assert stat.S_IMODE(own.stat().st_mode) & stat.S_IWOTH == 0
    own.chmod(0o777)  # others could put code there
    assert cache_folder().parent == tmp_path
    assert cache_folder() != own
    own.rmdir()
    own.touch()
    found = cache_folder()
    assert (found.parent, found.is_dir(), found == own) == (tmp_path, True, False)


def test_a_host_folder_that_is_a_link_is_still_of_its_store(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path / "store")
    added = store.add("lab-a", profile="io-walk", duration_s=20)
    folder = added.path.parent
    folder.rename(tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    (tmp_path / "other").symlink_to(store.root)
    named = tmp_path / "other" / "episodes" / "lab-a" / added.path.name
    for path in (added.path, named):
        found = find_archive(path)
        assert (found.in_store, found.host_id, len(found.index_rows)) == (True, "lab-a", 1), path


def test_what_is_written_goes_through_links_and_leaves_devices_alone(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    write(link, b"one")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"one")
    write(Path("/dev/null"), b"nothing")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(CommandError) as full:
        write(Path("/dev/full"), b"nothing")
    assert full.value.code != 0
    assert Path("/dev/full").is_char_device()


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    """Also by those who write: nothing else may be in it."""
    out, back = os.pipe()
    with folder_lock(tmp_path):
        if not (child := os.fork()):
            with folder_lock(tmp_path):
                os.write(back, b"second")
            os._exit(0)
        os.set_blocking(out, False)
        with pytest.raises(BlockingIOError):
            os.read(out, 10)
        write_atomically(tmp_path / "file", b"first")
    os.set_blocking(out, True)
    assert os.read(out, 10) == b"second"
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_locks_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with folder_lock(tmp_path):
        pass
    DecisionLog(tmp_path / "decisions").close()
    workspace = Workspace(artifacts=str(tmp_path), notify="true")
    assert notify(workspace, Notification("x", "run_failed", ["-"], str(tmp_path)))


# --- Ctrl-C


DEAF = """
import time
from pipelines.cli import app


class Deaf:
    def __del__(self):
        raise KeyboardInterrupt


def work():
    deaf = Deaf()
    del deaf
    time.sleep(60)


app.app = work
app.main()
"""


def test_an_interrupt_in_a_callback_that_cannot_raise_is_not_lost() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEAF],
        cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, dg.DagsterExecutionInterruptedError])
def test_an_interrupt_ends_a_command_in_one_line(
    interrupt: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise interrupt

    with pytest.raises(typer.Exit) as ended:
        with_json(command)()
    assert (ended.value.exit_code, capsys.readouterr().err) == (INTERRUPTED, "interrupted\n")


FAILING = """
import os, signal
from pipelines.cli import app


def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass
    except KeyboardInterrupt:
        raise SystemExit(1)  # as a library that makes a failure of it


app.app = work
app.main()
"""


def test_a_failure_that_ctrl_c_caused_is_an_interrupt() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING], cwd=ROOT, capture_output=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (130, b"")
