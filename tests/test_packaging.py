"""What is imported is the clone, and imports stay light where they have to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = sorted({path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"})


@pytest.mark.parametrize("name", ROOMS)
def test_a_package_is_imported_from_the_clone(name: str) -> None:
    """Names like ``models`` are easily shadowed by something else on the path."""
    module = import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT / name)
    assert module.__doc__


def test_every_room_is_installed_and_typed() -> None:
    found = set(
        find_packages(str(ROOT), PROJECT["tool"]["setuptools"]["packages"]["find"]["exclude"])
    )
    assert {name for name in found if "." not in name} == set(ROOMS)
    assert all((ROOT / name / "py.typed").exists() for name in ROOMS)


def test_no_test_module_imports_another() -> None:
    """What they share has a module of its own, so that each may be read and run alone."""
    importing = re.compile(r"^\s*(?:from|import) test_\w+", re.M)
    found = {path: importing.findall(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    assert {str(path): lines for path, lines in found.items() if lines} == {}


LOCK = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2].partition("#")[0].strip()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line
}


def test_the_lock_covers_what_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    declared = [*PROJECT["project"]["dependencies"], *(r for e in extras.values() for r in e)]
    for requirement in map(Requirement, declared):
        assert LOCK[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_lock_is_for_plain_pip_and_any_build_of_torch() -> None:
    """``make lock`` beside the CUDA build of torch would pin its packages for everyone."""
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in LOCK.values())
    cuda = {name for name in LOCK if name.startswith(("nvidia-", "triton", "cuda-"))}
    assert cuda == {"nvidia-nccl-cu12"}  # XGBoost's


def test_artifacts_hold_no_python() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "artifacts"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert tracked == ["artifacts/README.md"]


RUNS_CODE_ON_LOAD = {
    "pickle": "import pickle\n",
    "pickle by name": "from pickle import loads\n",
    "cloudpickle": "import cloudpickle\n",
    "dill": "import dill\n",
    "joblib": "import joblib\n",
    "marshal": "import marshal\n",
    "shelve": "import shelve\n",
    "torch.load": "import torch\n\ntorch.load('x')\n",
    "torch.load, weights only": "import torch as t\n\nt.load('x', weights_only=True)\n",
    "torch.load by name": "from torch import load\n",
    "torch.jit.load": "import torch\n\ntorch.jit.load('x')\n",
    "torch.save": "import torch\n\ntorch.save({}, 'x')\n",
    "numpy.load": "import numpy as np\n\nnp.load('x', allow_pickle=True)\n",
    "pandas.read_pickle": "import pandas as pd\n\npd.read_pickle('x')\n",
}


@pytest.mark.parametrize("name", RUNS_CODE_ON_LOAD)
def test_the_linter_refuses_what_runs_code_on_load(name: str) -> None:
    assert {"TID251", "S301"} & lint(RUNS_CODE_ON_LOAD[name], "models/some_module.py")


def test_the_linter_refuses_it_in_every_package() -> None:
    for room in ROOMS:
        assert "TID251" in lint(
            "import pickle\n\npickle.HIGHEST_PROTOCOL\n", f"{room}/some_module.py"
        )
        assert lint("import json\n\njson.loads('1')\n", f"{room}/some_module.py") == set()


def lint(snippet: str, name: str) -> set[str]:
    """The rules that a module of this name and text breaks."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--output-format=json",
            "--stdin-filename",
            name,
            "-",
        ],
        cwd=ROOT,
        input=snippet,
        capture_output=True,
        text=True,
        check=False,
    )
    return {fault["code"] for fault in json.loads(done.stdout)}


def test_no_exception_from_the_ban_but_those_that_read_no_pickle() -> None:
    lines = [
        line.strip()
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"noqa: .*(TID251|S30[12])", line)
    ]
    assert len(lines) == 2  # golden vectors; arrays of a bundle and of a scorer's state
    assert all("allow_pickle=False" in line for line in lines)


@pytest.mark.parametrize("named", ["", "artifacts/quick"])
def test_clean_leaves_what_people_wrote_and_other_folders(named: str, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    kept = {"README.md", "exclusions.yaml", "decisions/2026-11-02.jsonl"}
    folders = ("artifacts", "artifacts/quick")
    for folder in folders:
        for name in (*kept, "dagster_home/dagster.yaml", "checkpoints/host/gbt.ckpt.json"):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    every = {path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()}
    subprocess.run(
        ["make", "clean", *([f"ARTIFACTS={named}"] if named else [])], cwd=tmp_path, check=True
    )
    left = {path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()}
    cleaned = tmp_path / (named or "artifacts")
    stays = {tmp_path / folder / name for folder in folders for name in kept}
    assert left == {path for path in every if path in stays or not path.is_relative_to(cleaned)}
    again = ["make", "clean", *([f"ARTIFACTS={named}"] if named else [])]
    subprocess.run(again, cwd=tmp_path, check=not named)  # a folder without a run is anyone's
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    assert subprocess.run(
        ["make", "clean", "ARTIFACTS=thesis"], cwd=tmp_path, check=False
    ).returncode
    assert (tmp_path / "thesis" / "chapter.tex").exists()
