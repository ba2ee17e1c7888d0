"""Compiled kernels: where they are cached, and that compiling them is announced."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import config.paths
from config.paths import cache_folder

ROOT = Path(__file__).parent.parent
KERNELS = """
from episodes.jit import jit

@jit
def double(x):
    return 2 * x

@jit
def triple(x):
    return 3 * x
"""
USE = (
    "import kernels, os; print(kernels.double(2), kernels.triple(2), os.environ['NUMBA_CACHE_DIR'])"
)


def run(code: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call two kernels of a module in ``folder``, with the code of ``code``."""
    (folder / "kernels.py").write_text(KERNELS)
    return subprocess.run(
        [sys.executable, "-c", USE],
        env={"PYTHONPATH": f"{folder}:{code}", "HOME": str(folder / "home")} | environment,
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The code as an installed copy has it: no clone around it."""
    for room in ("config", "episodes"):
        shutil.copytree(ROOT / room, tmp_path / "site-packages" / room)
    return tmp_path / "site-packages"


def test_compiling_is_announced_once_and_only_while_the_cache_is_cold(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cold = run(ROOT, tmp_path, NUMBA_CACHE_DIR=str(cache))
    assert cold.stdout == f"4 6 {cache}\n"
    assert cold.stderr.count("compiling kernels") == 1
    assert str(cache) in cold.stderr
    assert {path.name.split("-")[0] for path in cache.rglob("*.nbi")} == {
        "kernels.double", "kernels.triple",
    }  # fmt: skip
    warm = run(ROOT, tmp_path, NUMBA_CACHE_DIR=str(cache))
    assert (warm.stdout, warm.stderr) == (cold.stdout, "")


def test_an_installed_copy_caches_where_the_platform_says(tmp_path: Path, installed: Path) -> None:
    before = {path for path in installed.rglob("*") if "__pycache__" not in path.parts}
    named = run(installed, tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert named.stdout == f"4 6 {tmp_path / 'xdg' / 'phasewatch' / 'numba'}\n"
    assert list((tmp_path / "xdg" / "phasewatch" / "numba").rglob("*.nbi"))
    default = run(installed, tmp_path)
    assert default.stdout == f"4 6 {tmp_path / 'home' / '.cache' / 'phasewatch' / 'numba'}\n"
    assert {path for path in installed.rglob("*") if "__pycache__" not in path.parts} == before
    assert not list(installed.rglob("*.nbi"))


def test_a_clone_caches_in_its_artifacts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config.paths, "CLONE", tmp_path)
    assert cache_folder() == tmp_path / "artifacts" / "cache"
