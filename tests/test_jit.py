"""Compiled kernels: where they are cached, and that compiling them is announced."""

from __future__ import annotations

import ast
import os
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


def run(
    code: Path,
    folder: Path,
    kernels: str = KERNELS,
    mtime_ns: int = 0,
    use: str = USE,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Call two kernels of a module in ``folder``, with the code of ``code``."""
    (folder / "kernels.py").write_text(kernels)
    if mtime_ns:
        os.utime(folder / "kernels.py", ns=(mtime_ns, mtime_ns))
    return subprocess.run(
        [sys.executable, "-c", use],
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


def test_numba_is_imported_when_a_kernel_is_first_called() -> None:
    use = (
        "import sys, numpy as np, stages.registry; from features import relative; "
        "print('numba' in sys.modules, end=' '); relative.running_median(np.ones((2, 1)), 2); "
        "print('numba' in sys.modules, type(relative._running_median).__module__.split('.')[0])"
    )
    told = subprocess.run([sys.executable, "-c", use], cwd=ROOT, capture_output=True, check=True)
    assert told.stdout.split() == [b"False", b"True", b"numba"]


def test_workers_leave_the_announcement_to_their_parent(tmp_path: Path) -> None:
    kernels = KERNELS + "def six(): return triple(2)\n"
    use = "\n".join((
        "import logging, kernels",
        "from stages.workers import worker_processes",
        "with worker_processes(1, logging.basicConfig) as pool:",
        "    print(pool.submit(kernels.six).result())",
    ))  # fmt: skip
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    in_worker = run(ROOT, tmp_path, kernels, use=use, **environment)
    assert (in_worker.stdout, in_worker.stderr) == ("6\n", "")
    assert list((tmp_path / "cache").rglob("kernels.triple*.nbi"))


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


def test_an_edited_kernel_is_compiled_again_whatever_its_time_and_size(tmp_path: Path) -> None:
    """Numba alone looks at these two, and ran the old one."""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    assert run(ROOT, tmp_path, **environment).stdout.startswith("4 6 ")
    file = tmp_path / "kernels.py"
    before = file.stat()
    edited = KERNELS.replace("2 * x", "5 * x")
    assert run(ROOT, tmp_path, edited, before.st_mtime_ns, **environment).stdout.startswith("10 6 ")
    assert file.stat().st_size == before.st_size


def test_kernels_read_no_globals_of_other_modules() -> None:
    """A change of these would not be compiled: what is kept is kept for one file."""
    for path in [p for p in ROOT.glob("*/*.py") if p.parent.name not in ("tests", "benchmarks")]:
        tree = ast.parse(path.read_text())
        others = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module not in (None, "episodes.jit")
            for alias in node.names
        }
        for kernel in tree.body:
            if isinstance(kernel, ast.FunctionDef) and {"jit", "inlined"} & {
                getattr(each, "id", "") for each in kernel.decorator_list
            }:
                read = {node.id for line in kernel.body for node in ast.walk(line)
                        if isinstance(node, ast.Name)}  # fmt: skip
                assert not read & others, (path, kernel.name)
