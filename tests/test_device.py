"""The distribution for devices, in an environment of its own: NumPy, ONNX Runtime, nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import which

import pytest
from lab import once

from models.registry import MODELS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "device" / "pyproject.toml").read_text())
INCLUDED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
PINS = PROJECT["project"]["dependencies"]
ABSENT = (
    "torch",
    "xgboost",
    "sklearn",
    "dagster",
    "polars",
    "pyarrow",
    "numba",
    "pydantic",
    "cryptography",
)
MAX_INSTALLED = 180 << 20

LOADED = """
import json, sys
from live.cli import main
code = main(["check", sys.argv[1]])
import live.machine, live.outputs, live.sources
print(json.dumps({"code": code, "modules": sorted(sys.modules), "files": sorted(
    module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)
)}))
"""


Python = Callable[[str], Path]


@pytest.fixture(scope="session")
def device_python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Program of a Python -> the one of an environment with phasewatch-device, made with it."""

    def make(program: str, root: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(root), str(ROOT / "device")],
            check=True,
        )
        [wheel] = root.glob("*.whl")
        subprocess.run([program, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
        subprocess.run(
            [*pip, "--python", str(root / "venv"), "install", "--quiet", str(wheel)], check=True
        )

    def of(program: str) -> Path:
        name = f"device-{Path(program).name}"
        return once(tmp_path_factory, name, partial(make, program)) / "venv" / "bin" / "python"

    return of


@pytest.fixture(scope="session")
def python(device_python: Python) -> Path:
    return device_python(sys.executable)


def interpreter(version: str) -> str | None:
    """Another Python of this machine: on the path, or installed beside this one."""
    beside = Path(sys.base_prefix).parent.glob(f"{version}*/bin/python{version}")
    for program in (which(f"python{version}"), *map(str, beside)):
        if program and not subprocess.run([program, "-c", ""], capture_output=True).returncode:
            return program
    return None


@pytest.mark.parametrize("model", MODELS)
def test_the_bundle_of_every_model_verifies_on_a_device(
    python: Path, bundled: Callable[[str], Path], tmp_path: Path, model: str
) -> None:
    done = subprocess.run(
        [str(python), "-c", LOADED, str(bundled(model))], cwd=tmp_path, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"] == 0
    assert not {name.partition(".")[0] for name in said["modules"]} & set(ABSENT)
    assert ("onnxruntime" in said["modules"]) == ("torch" in MODELS[model].libraries)
    ours = {f for f in said["files"] if Path(f).parent.name in ("live", "features", "models")}
    assert all(str(python.parent.parent) in name for name in ours)


@pytest.mark.parametrize(
    ("version", "model"),
    [
        ("3.13", "gbt"),
        ("3.13", "gru"),
        pytest.param("3.12", "gru", marks=pytest.mark.long),
        pytest.param("3.13", "knn", marks=pytest.mark.long),
    ],
)
def test_bundles_verify_with_other_pythons(
    version: str, model: str, device_python: Python, bundled: Callable[[str], Path], tmp_path: Path
) -> None:
    program = interpreter(version)
    if program is None:
        pytest.skip(f"there is no Python {version} here")
    done = subprocess.run(
        [str(device_python(program)), "-c", LOADED, str(bundled(model))], cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1])["code"] == 0


def test_the_wheel_holds_the_modules_that_are_loaded_and_no_others(
    python: Path, bundled: Callable[[str], Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [str(python), "-c", LOADED, str(bundled("gru"))], cwd=tmp_path, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    packages = next((python.parent.parent / "lib").glob("python3*")) / "site-packages"
    loaded = {
        str(Path(name).relative_to(packages))
        for name in json.loads(done.stdout.splitlines()[-1])["files"]
        if name.startswith(str(packages))
    }
    modules = {name for name in INCLUDED.values() if name.endswith(".py")}
    assert {
        name for name in loaded if name.split("/")[0] in {m.split("/")[0] for m in modules}
    } == (modules)
    [wheel] = python.parent.parent.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        held = {name for name in content.namelist() if ".dist-info/" not in name}
    assert held == set(INCLUDED.values())


def test_it_takes_little_room(python: Path) -> None:
    packages = next((python.parent.parent / "lib").glob("python3*")) / "site-packages"
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    assert size < MAX_INSTALLED


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_every_pin_has_a_wheel_for_64_bit_arm(version: str, tmp_path: Path) -> None:
    assert all("==" in pin for pin in PINS)
    platforms = [
        word
        for name in ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
        for word in ("--platform", f"{name}_aarch64")
    ]
    report = tmp_path / "report.json"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--dry-run", "--ignore-installed", "--target", str(tmp_path / "none"),
         "--only-binary", ":all:", "--python-version", version, *platforms,
         "--report", str(report), *PINS], check=True,
    )  # fmt: skip
    wheels = [each["download_info"]["url"] for each in json.loads(report.read_text())["install"]]
    assert sum("aarch64" in wheel for wheel in wheels) >= 2
    assert all(wheel.endswith(".whl") for wheel in wheels)


def test_the_program_is_installed(python: Path, tmp_path: Path) -> None:
    words = "from importlib.metadata import entry_points as e; print([p.value for p in e(name=%r)])"
    done = subprocess.run(
        [str(python), "-c", words % "phasewatch-device"], cwd=tmp_path, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "['live.cli:entry']"
