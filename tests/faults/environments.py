"""Faults of where a command runs: odd paths, other locales, streams that are closed, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from faults.kills import HOMELESS, INGEST, addressed, ingested, lab_at, whole
from faults.table import Bench, Outcome, fault
from faults.warm import Child, warm

NAMES = (
    "a b", "a%20b", "a?b", "a#b", "ä ü", "日本", "a\nb", "a'b", 'a"b', "a;b", "a&b=c", "100%",
    "a\\b", "a*[x]{y}", "~", "a:b", "$HOME", "-x", "a\udce4b", "a\tb",
)  # fmt: skip


@fault("odd path: store and artifacts", tries=len(NAMES), quick=0)
def odd_path(bench: Bench) -> Outcome:
    """The same is made at the path that was named, and nowhere else; or it is refused."""
    expected = ingested(bench)
    name, said = bench.choice_in_turn(NAMES), bench.folder / "said"
    try:
        parent = bench.folder / "there" / f"d{name}"
        parent.mkdir(parents=True)
    except (OSError, UnicodeEncodeError) as error:  # this file system has no such names
        return Outcome("harmless", str(error))
    shutil.copytree(expected["folder"] / "store", parent / "store")
    ran = warm().start(said, *INGEST, *addressed(parent), env=HOMELESS).wait(120)
    if ran.broken:
        return ran.broken
    others, home = [path for path in parent.parent.iterdir() if path != parent], ""
    if others:
        return Outcome("wrong", f"{name!r}: {others}")
    if ran.code == 2 and "Unicode text" in ran.err:
        return Outcome("noticed", ran.err)
    if ran.code == 2:
        clear = "DAGSTER_HOME" in ran.err and len(ran.err.splitlines()) < 5
        home = str(bench.folder / "home")
        env = {"DAGSTER_HOME": home}
        ran = warm().start(said, *INGEST, *addressed(parent), env=env).wait(120)
        if not clear or ran.code:
            return ran.broken or Outcome("wrong", f"{name!r}: {ran.err}")
    if ran.code:
        return Outcome("wrong", f"{name!r}: {ran.err[-1500:]}")
    asked = warm().start(said, parent, home, call="faults.kills:told_of_ingest").wait(60)
    if asked.code:
        return Outcome("wrong", f"{name!r}: {asked.err[-1500:]}")
    told = json.loads(asked.out)
    same = told["made"] == expected["made"]
    return Outcome("harmless" if same else "wrong", f"{name!r}: {told}")


# --- streams

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("sync", "--json"), ("doctor", "--json"), ("champion",), ("report", "--json"),
    ("predict", "{batch}", "--json"), ("inspect", "{root}/artifacts/checkpoints"),
    ("predict", "nothing", "--json"), ("contract",), ("--help",), ("validate", "--json"),
)  # fmt: skip
STREAMS = (
    ("/dev/full", ""), ("", "/dev/full"), ("closed", ""), ("", "closed"), ("closed", "closed"),
    ("/dev/full", "/dev/full"),
)  # fmt: skip
ALONE = {"inspect", "contract", "--help"}


@fault("streams: full or closed", tries=24, quick=1)
def streams(bench: Bench) -> Outcome:
    """One line on the stream that is left, and an exit code; what is made is whole."""
    made = whole(bench)
    words = bench.random.choice(COMMANDS)
    out, err = bench.choice_in_turn(STREAMS)
    batch = next(iter(lab_at(made).workspace.listing().batches))
    named = [word.format(root=made, batch=batch) for word in words]
    if words[0] == "validate":
        named += ["--store", str(made / "store")]
    elif words[0] not in ALONE:
        named += map(str, addressed(made))
    env = {"DAGSTER_HOME": str(bench.folder / "home")}
    ran = warm().start(bench.folder / "said", *named, env=env, out=out, err=err).wait(120)
    what = f"{' '.join(words)} >{out or 'file'} 2>{err or 'file'}: {ran.code} {ran.err[-500:]}"
    if ran.broken:
        return Outcome(ran.broken.verdict, what + ran.broken.note)
    usual = {0, 2} if "nothing" in words else {0, 1} if words[0] == "doctor" else {0}
    if out == "/dev/full":
        right = ran.code == (2 if "nothing" in words else 1) and (err or len(ran.err) > 10)
        return Outcome("noticed" if right else "wrong", what)
    return Outcome("harmless" if ran.code in usual else "wrong", what)


# --- file systems, locales, caches

NO_FSYNC = """
import errno, os, stat
real = os.fsync
def fsync(handle):
    if {everywhere} or stat.S_ISDIR(os.fstat(handle).st_mode):
        raise OSError(errno.{code}, "not offered")
    real(handle)
def refused(*_, **__):
    raise OSError(errno.EPERM, "not offered")
os.fsync, os.chmod = fsync, refused
"""


@fault("file system without fsync and chmod", tries=6, quick=0)
def without_fsync(bench: Bench) -> Outcome:
    expected = ingested(bench)
    root, said = bench.copy(expected["folder"]), bench.folder / "said"
    code = bench.choice_in_turn(("EINVAL", "ENOTSUP", "ENOSYS"))
    prelude = NO_FSYNC.format(everywhere=bench.random.random() < 0.5, code=code)
    words = addressed(root)
    for command in (INGEST, ("exclude", "{episode}", "--reason", "x", "--who", "y")):
        named = [w.format(episode=lab_at(root).store.added[0].episode_id) for w in command]
        ran = warm().start(said, *named, *words, env=HOMELESS, prelude=prelude).wait(120)
        if ran.broken or ran.code:
            return ran.broken or Outcome("wrong", ran.err[-1500:])
    told = json.loads(warm().start(said, root, call="faults.kills:told_of_ingest").wait(60).out)
    return Outcome("harmless" if told["made"] == expected["made"] else "wrong", str(told))


def _latin_1(folder: Path) -> dict[str, str] | None:
    """A locale of ISO-8859-1, made here; None where it cannot be."""
    made = folder / "de_DE.ISO-8859-1"
    command = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(made)]
    try:
        if subprocess.run(command, capture_output=True).returncode > 1 or not made.is_dir():
            return None
    except OSError:
        return None
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.ISO-8859-1"}


@fault("locale without Unicode", tries=2, quick=0)
def locale(bench: Bench) -> Outcome:
    """Everything at an odd path, in real processes: the locale is read when Python starts."""
    expected = ingested(bench)
    root = bench.folder / "größer"
    shutil.copytree(expected["folder"] / "store", root / "store")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    chosen = bench.choice_in_turn((None, ascii_only)) or _latin_1(bench.folder) or ascii_only
    env = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME" and k != "PYTHONUTF8"}
    config = root / "config.yaml"
    config.write_text("resources: {workspace: {config: {device: cpu}}}  # ä\n", encoding="utf-8")
    words = ("pipelines.cli.app", *INGEST, *addressed(root), "--config", config, "--json")
    ran = bench.run(*words, env=env | chosen, limit_s=180)
    if ran.broken or ran.code:
        return ran.broken or Outcome("wrong", ran.err[-1500:])
    said = bench.folder / "said"
    told = json.loads(warm().start(said, root, call="faults.kills:told_of_ingest").wait(60).out)
    return Outcome("harmless" if told["made"] == expected["made"] else "wrong", str(told))


# --- Ctrl-C


def _interrupted(bench: Bench, child: Child, seconds: float, done: int) -> Outcome:
    import signal
    import time

    time.sleep(bench.random.uniform(0, seconds))
    child.kill(signal.SIGINT)
    ran = child.wait(60)
    if ran.broken:
        return ran.broken
    finished = ran.code == done and (not done or "problem:" in ran.out)
    right = finished or ran.code == 130
    return Outcome("noticed" if right else "wrong", f"{ran.code}: {ran.err[-700:]}")


@fault("Ctrl-C", tries=16, quick=1)
def interrupt(bench: Bench) -> Outcome:
    """130, and one word; or the command had done its work."""
    expected = ingested(bench)
    root, said = bench.copy(expected["folder"]), bench.folder / "said"
    words = bench.random.choice((INGEST, INGEST, ("sync",), ("validate",), ("doctor",)))
    named = (*words, "--store", root / "store") if words[0] == "validate" else (
        *words, *addressed(root)
    )  # fmt: skip
    seconds = expected["seconds"] if words == INGEST else 0.5
    done = 1 if words == ("doctor",) else 0  # it finds that no model is trained
    return _interrupted(bench, warm().start(said, *named, env=HOMELESS), seconds, done)
