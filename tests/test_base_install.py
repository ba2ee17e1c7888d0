"""The base install, from a wheel into an environment of its own: no Dagster, no training library.

Its libraries are links to the ones installed here: those that the base requirements lead to, and no
others. Every command runs once, for all tests, in a home and a working directory that are not the
clone's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab import once
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from models.registry import MODELS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = sorted({path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"})
COMPLETE = {"episodes", "features", "live", "stages", "phasewatch", "simulation"}
"""Rooms of which no module needs an extra."""
CORE = sorted({"models", "evaluation"} | COMPLETE)
EXTRAS = {
    canonicalize_name(Requirement(line).name)
    for extra in ("train", "orchestrate", "ray")
    for line in PROJECT["optional-dependencies"][extra]
}
LIBRARIES = {
    name: extra[0]
    for name, spec in MODELS.items()
    if (extra := [library for library in spec.libraries if library in EXTRAS])
}
SCORED = [name for name in MODELS if name not in LIBRARIES]

IMPORTS = f"""
import importlib, json, pathlib, sys
missing = {{}}
for room in {[*CORE, "pipelines.cli"]!r}:
    try:
        package = importlib.import_module(room)
    except ModuleNotFoundError as error:
        if error.name != room:
            missing[room] = error.name
        continue
    for path in sorted(pathlib.Path(package.__file__).parent.glob("*.py")) * (room in {CORE!r}):
        try:
            importlib.import_module(f"{{room}}.{{path.stem}}")
        except ModuleNotFoundError as error:
            missing[f"{{room}}.{{path.stem}}"] = error.name
print(json.dumps(missing))
"""
DISTRIBUTIONS = """
import importlib.metadata, json
print(json.dumps([one.name for one in importlib.metadata.distributions()]))
"""


def commands(trained: Path) -> dict[str, list[str]]:
    """What is asked of both installs, by name; extract writes into the working directory."""
    store = trained / "store"
    archive = min(store.rglob("*.tar.zst"))
    episode = archive.name.removesuffix(".tar.zst")
    folder = next((trained / "artifacts").rglob("knn_realistic.ckpt.json")).parent

    def predict(model: str) -> list[str]:
        checkpoint = folder / f"{model}_realistic.ckpt.json"
        return ["predict", str(archive), "--checkpoint", str(checkpoint), "--json"]

    return {
        "version": ["--version"],
        "contract": ["contract", "--json"],
        "validate": ["validate", episode, "--store", str(store), "--json"],
        "extract": ["extract", str(archive), "--out", "episode.npz", "--json"],
        "inspect": ["inspect", str(folder), "--json"],
        **{model: predict(model) for model in MODELS},
    }


def required(lines: Iterable[str], known: dict[str, Distribution]) -> None:
    """Add the distributions that requirements lead to, without any extra, to ``known``."""
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in known:
            known[name] = distribution(name)
            assert known[name].version in requirement.specifier, requirement
            required(known[name].requires or [], known)


def link(one: Distribution, packages: Path) -> None:
    """Link what a distribution has in its site-packages into another."""
    for name in {file.parts[0] for file in one.files or []} - {"..", "__pycache__"}:
        (packages / name).symlink_to(Path(str(one.locate_file(name))))


def files(folder: Path) -> dict[str, list[int]]:
    """Size and time of every file below a folder; Python itself may write what it compiled."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "__pycache__"]
    return {
        str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in paths
    }


def tracked() -> list[str]:
    """The files that a clone has of what is installed."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *ROOMS]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def install(root: Path, trained: Path) -> None:
    """Install, run everything, and keep what came of it as ``results.json``."""
    source, work, home = root / "source", root / "work", root / "home"
    work.mkdir()
    home.mkdir()
    for name in [*tracked(), "pyproject.toml", "README.md"]:  # a build writes beside its source
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "env")], check=True)
    python = root / "env" / "bin" / "python"
    packages = next((root / "env" / "lib").glob("python*/site-packages"))
    libraries: dict[str, Distribution] = {}
    required(PROJECT["dependencies"], libraries)
    for library in libraries.values():
        link(library, packages)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root)]
    subprocess.run([*pip, *built, str(source)], check=True)
    [wheel] = root.glob("*.whl")
    alone = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-compile"]
    bare = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    subprocess.run([*pip, *alone, str(wheel)], check=True, env=bare)

    def run(*command: str) -> dict[str, Any]:
        done = subprocess.run(
            [python.with_name(command[0]), *command[1:]],
            cwd=work, env=bare, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return {"code": done.returncode, "out": done.stdout, "err": done.stderr}

    before = files(packages)
    results = {
        "distributions": run("python", "-c", DISTRIBUTIONS),
        "imports": run("python", "-c", IMPORTS),
        **{name: run("phasewatch", *words) for name, words in commands(trained).items()},
    }
    document = {
        "results": results,
        "before": before,
        "after": files(packages),
        "written": [*files(home), *files(work)],
    }
    (root / "results.json").write_text(json.dumps(document))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, trained_lab: Path) -> Path:
    return once(tmp_path_factory, "base-install", lambda root: install(root, trained_lab))


@pytest.fixture(scope="session")
def document(base: Path) -> dict[str, Any]:
    return json.loads((base / "results.json").read_text())


def in_the_clone(words: list[str], folder: Path) -> str:
    """What the same command prints with every extra installed."""
    env = {name: value for name, value in os.environ.items() if "PHASEWATCH" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.app", *words],
        cwd=folder, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_no_extra_is_installed(document: dict[str, Any]) -> None:
    names = json.loads(document["results"]["distributions"]["out"])
    installed = {canonicalize_name(name) for name in names}
    assert "phasewatch" in installed
    assert not EXTRAS & installed


def test_the_wheel_holds_every_file_of_every_room(document: dict[str, Any]) -> None:
    assert set(tracked()) <= set(document["before"])


def test_the_core_imports_without_an_extra(document: dict[str, Any]) -> None:
    """A module may need the library of its model; a room's door and the commands need none."""
    missing = json.loads(document["results"]["imports"]["out"])
    assert set(missing.values()) <= {"torch", "xgboost", "sklearn", "matplotlib", "jinja2"}
    assert not {name for name in missing if name.partition(".")[0] in COMPLETE}
    assert not set(missing) & {*CORE, "pipelines.cli"}


def test_the_version_is_told(document: dict[str, Any]) -> None:
    told = document["results"]["version"]
    assert (told["code"], told["err"]) == (0, "")
    assert PROJECT["version"] in told["out"]


@pytest.mark.parametrize("name", ["contract", "validate", "inspect", *SCORED])
def test_a_command_says_what_it_says_in_the_clone(
    name: str, document: dict[str, Any], trained_lab: Path, tmp_path: Path
) -> None:
    told = document["results"][name]
    assert told["code"] == 0, told["err"]
    assert told["out"] == in_the_clone(commands(trained_lab)[name], tmp_path)


def test_an_extraction_is_that_of_the_clone(
    base: Path, document: dict[str, Any], trained_lab: Path, tmp_path: Path
) -> None:
    told = document["results"]["extract"]
    assert told["code"] == 0, told["err"]
    in_the_clone(commands(trained_lab)["extract"], tmp_path)
    with np.load(base / "work" / "episode.npz") as here, np.load(tmp_path / "episode.npz") as there:
        assert set(here) == set(there)
        assert len(here["features"])
        for name in here:
            np.testing.assert_array_equal(here[name], there[name])


@pytest.mark.parametrize("model", LIBRARIES)
def test_a_model_names_the_library_and_the_extra(model: str, document: dict[str, Any]) -> None:
    told = document["results"][model]
    assert told["code"] == 1, told
    assert len(told["err"].splitlines()) == 1, told["err"]
    assert LIBRARIES[model] in told["err"]
    assert "[train]" in told["err"]


def test_nothing_is_written_beside_the_code(document: dict[str, Any]) -> None:
    assert document["after"] == document["before"]
    assert any(name.endswith(".nbi") for name in document["written"])  # Numba's cache
