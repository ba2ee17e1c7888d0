"""What scoring costs on a device: one core, 512 MB, and nothing but phasewatch-device installed.

    python -m benchmarks.device [BUNDLE …]

Without bundles, every realistic checkpoint of recipe ``host`` is bundled. The environment is built
once, in ``artifacts/cache/device``. A cgroup would need rights, so the core is held by affinity and
the most that was resident is compared with the limit: ONNX Runtime reserves address space that it
never uses. The backlog is an hour of rows, per second of processor time.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.lines import recording
from config.paths import CLONE, cache_folder
from episodes.format import SOURCES
from live.sources import DEPLOYABLE
from stages.workspace import Workspace, workspace_from_environment

if TYPE_CHECKING:
    from benchmarks.lines import Recording

EPISODE = "01M88BN68TR9ZRPBHDWCWYT3Z6"  # two and a half minutes, with every source
HOUR_S = 3600
AT_10_HZ_S = 40
MEMORY = 512 << 20
RESIDENT_MIB, PERCENT_AT_10_HZ, BACKLOG = 80, 3, 200
ENVIRONMENT = cache_folder() / "device"


def main() -> None:
    if not sys.argv[1:] and not list(
        workspace_from_environment().checkpoint_folder("host").glob("*realistic*")
    ):
        print("device: not measured, because nothing is trained; run: make run")
        return
    python = installed()
    size = sum(p.stat().st_size for p in site_packages(python).rglob("*") if p.is_file())
    with recording("device", "onnxruntime") as out, tempfile.TemporaryDirectory() as scratch:
        out.alone("installed, without pip", (size - size_of_pip(python)) / 2**20, "MiB")
        folder = Path(scratch)
        bundles = [Path(name).absolute() for name in sys.argv[1:]] or list(made_bundles(folder))
        episode, hour = folder / "lab" / "episode", folder / "lab" / "hour"
        unpacked(episode)
        repeated(episode, hour)
        for bundle in bundles:
            measure(out, python, bundle, episode, hour)


def measure(out: Recording, python: Path, bundle: Path, episode: Path, hour: Path) -> None:
    first = min(first_score(python, bundle, episode) for _ in range(3))
    latency, start = replayed(python, bundle, episode)
    _, took = replayed(python, bundle, hour)
    share, resident = at_10_hz(python, bundle)
    p50, p99 = np.percentile(latency, [50, 99])
    head = json.loads((bundle / "bundle.json").read_bytes())
    name = f"{head['model']} ({head['runtime']['kind']})"
    out.alone(f"{name}: first score", first, "s")
    out.limit(f"{name}: resident", resident / 2**20, RESIDENT_MIB, "MiB", "the aim")
    out.alone(f"{name}: last row to event, median", p50, "ms")
    out.alone(f"{name}: last row to event, p99", p99, "ms")
    out.limit(f"{name}: at 10 Hz", 100 * share, PERCENT_AT_10_HZ, "% of a core", "the aim")
    backlog = HOUR_S / (took - start)
    out.limit(f"{name}: an hour's backlog", backlog, BACKLOG, "x real time", "the floor", "more")


# --- one process each


def command(python: Path, bundle: Path, *words: str) -> list[str]:
    return [str(python), "-c", "from live.cli import entry; entry()", "live", str(bundle), *words]


def limited() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def environment() -> dict[str, str]:
    one = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir(), **one}


def first_score(python: Path, bundle: Path, episode: Path) -> float:
    """Seconds from the start of the program to its first event."""
    words = command(python, bundle, "--replay", str(episode), "--speed", "0")
    began = time.perf_counter()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(),
        preexec_fn=limited, cwd=tempfile.gettempdir(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline(), "the scorer ended without an event"
        took = time.perf_counter() - began
        process.kill()
    return took


def replayed(python: Path, bundle: Path, episode: Path) -> tuple[list[float], float]:
    """Latency of every event in ms, and seconds of processor time in all."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command(python, bundle, "--replay", str(episode), "--speed", "0"), capture_output=True,
        env=environment(), preexec_fn=limited, cwd=tempfile.gettempdir(), check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [json.loads(each)["latency_ms"] for each in done.stdout.splitlines()], took


def at_10_hz(python: Path, bundle: Path) -> tuple[float, int]:
    """Share of a core while this machine is scored, and the most memory it held."""
    with subprocess.Popen(
        command(python, bundle, "--this-machine", "--quiet"), stderr=subprocess.DEVNULL,
        env=environment(), preexec_fn=limited, cwd=tempfile.gettempdir(),
    ) as process:  # fmt: skip
        time.sleep(5)
        before = processor_s(process.pid)
        time.sleep(AT_10_HZ_S)
        after, resident = processor_s(process.pid), peak_bytes(process.pid)
        process.terminate()
    assert resident < MEMORY, f"{resident} bytes resident"
    return (after - before) / AT_10_HZ_S, resident


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    for each in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if each.startswith("VmHWM:"):
            return 1024 * int(each.split()[1])
    return 0


# --- what is measured with


def installed() -> Path:
    """The Python of an environment with phasewatch-device in it."""
    assert CLONE, "the device distribution is built from a clone"
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--force-reinstall", "--no-deps", str(CLONE / "device")], check=True,
    )  # fmt: skip
    if not (ENVIRONMENT / ".installed").exists():
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             str(CLONE / "device")], check=True,
        )  # fmt: skip
        (ENVIRONMENT / ".installed").touch()
    return python


def site_packages(python: Path) -> Path:
    return next((python.parent.parent / "lib").glob("python3*")) / "site-packages"


def size_of_pip(python: Path) -> int:
    folders = [
        folder
        for name in ("pip", "setuptools", "pkg_resources")
        for folder in site_packages(python).glob(f"{name}*")
    ]
    return sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())


def made_bundles(folder: Path) -> list[Path]:
    """A bundle of every realistic checkpoint of recipe ``host``."""
    from models.checkpoint import checkpoint_path
    from models.registry import VARIANTS
    from stages.device_bundle import bundle_files, write_bundle
    from stages.project import Project
    from stages.scoring import scorer_of

    workspace = workspace_from_environment()
    project, made = Project(workspace), []
    for variant in VARIANTS:
        path = checkpoint_path(workspace.checkpoint_folder("host"), variant)
        if variant.mode != "realistic" or not path.exists():
            continue
        files = bundle_files(scorer_of(project, path))
        write_bundle(folder / variant.name, files)
        made.append(folder / variant.name)
    assert made, "nothing is trained; run: make run"
    return made


def unpacked(folder: Path) -> None:
    from episodes.reading import read_episode

    stored = Workspace().listing().find(EPISODE)
    folder.mkdir(parents=True)
    for name, content in read_episode(stored.path, EPISODE, {}).members.items():
        (folder / name).write_bytes(content)


def repeated(episode: Path, hour: Path) -> None:
    """An hour of rows: the episode again and again, each time later."""
    from live.timeline import line_time

    hour.mkdir(parents=True)
    (hour / "labels.jsonl").write_bytes((episode / "labels.jsonl").read_bytes())
    guest = (episode / SOURCES["guest"].file).read_bytes().splitlines()
    length = line_time(guest[-1], 0) - line_time(guest[0], 0) + 100_000_000
    for name in DEPLOYABLE:
        lines = (episode / SOURCES[name].file).read_bytes().splitlines()
        with (hour / SOURCES[name].file).open("wb") as file:
            for turn in range(int(HOUR_S * 1e9 / length)):
                for each in lines:
                    t = line_time(each, 0)
                    later = each.replace(str(t).encode(), str(t + turn * length).encode(), 1)
                    file.write(later + b"\n")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
