"""The command ``doctor``: what is installed and what is stale. Nothing is written or made."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.cli import options
from pipelines.cli.console import FAILED, OK, Document, Table, workspace_of
from pipelines.home import SETTINGS, dagster_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import dagster as dg

    from stages.project import Project
    from stages.status import Status
    from stages.workspace import Workspace

EXTRAS = {
    "base": ("numpy", "numba", "polars", "pyarrow", "pydantic", "safetensors", "zstandard"),
    "train": ("torch", "xgboost", "scikit-learn", "matplotlib", "jinja2"),
    "orchestrate": ("dagster", "dagster-webserver"),
}
MIN_FREE_BYTES = 2_000_000_000
STATE_WORDS = {"stale": "not current", "missing": "missing", "damaged": "damaged"}
_SHOWN = 5  # items of a list


@dataclass
class Findings:
    """What was found, section by section, and the problems, each with its remedy."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)

    def problem(self, what: str, remedy: str) -> None:
        self.problems.append({"problem": what, "remedy": remedy})


@dataclass(frozen=True)
class Diagnosis(Document):
    """Problems first, then everything that was looked at."""

    findings: Findings

    def as_json(self) -> dict[str, Any]:
        problems = self.findings.problems
        return {"ok": not problems, "problems": problems, **self.findings.sections}

    def text(self) -> Iterator[str | Table]:
        for item in self.findings.problems:
            yield f"problem: {item['problem']}\n  remedy: {item['remedy']}"
        yield "" if self.findings.problems else "no problem found\n"
        rows, shown = [], ""
        for name, section in self.findings.sections.items():
            for key, value in section.items():
                for i, line in enumerate(_lines(value)):
                    rows.append(("" if name == shown else name, "" if i else key, line))
                    shown = name
        yield Table(("about", "what", "found"), rows)

    @property
    def exit_code(self) -> int:
        return FAILED if self.findings.problems else OK


def doctor(
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> Diagnosis:
    """Show what is installed, which store it is and what is stale; exit 1 on problems."""
    return Diagnosis(examine(lambda: workspace_of(config, store, artifacts)))


def _lines(value: Any) -> list[str]:
    """A finding in words, one item per line; the first few of many."""
    if isinstance(value, dict):
        return [f"{name}: {item or 'missing'}" for name, item in value.items()] or ["none"]
    if isinstance(value, list):
        lines = [" ".join(i.values()) if isinstance(i, dict) else str(i) for i in value]
        more = len(lines) - _SHOWN
        return [*lines[:_SHOWN], *([f"and {more} more"] if more > 0 else [])] or ["none"]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return ["none" if value is None else str(value)]


def extra_of(module: str) -> str:
    """The extra that brings a library."""
    names = {"sklearn": "scikit-learn"}
    wanted = names.get(module, module)
    return next((extra for extra, packages in EXTRAS.items() if wanted in packages), "train")


def examine(read_workspace: Callable[[], Workspace]) -> Findings:
    """Look at the installation, the disk, the GPU, Dagster and the state of every stage."""
    findings = Findings()
    missing = _installed(findings)
    if "base" in missing:
        return findings
    workspace = read_workspace()
    _disk(findings, workspace.artifacts_path)
    _gpu(findings, workspace.device, torch="train" not in missing)
    if "orchestrate" not in missing:
        _dagster(findings)
    _stages(findings, workspace)
    return findings


def _installed(findings: Findings) -> list[str]:
    missing = []
    for extra, packages in EXTRAS.items():
        versions = {name: _version(name) for name in packages}
        findings.sections.setdefault("installed", {})[extra] = versions
        absent = [name for name, found in versions.items() if found is None]
        if absent:
            missing.append(extra)
            which = "" if extra == "base" else f"[{extra}]"
            findings.problem(
                f"{', '.join(absent)} not installed",
                f"pip install -c constraints.txt -e '.{which}'",
            )
    return missing


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _disk(findings: Findings, folder: Path) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    findings.sections["artifacts"] = {"path": str(folder), "free_gb": round(free / 1e9, 1)}
    if free < MIN_FREE_BYTES:
        findings.problem(
            f"{folder}: {free / 1e9:.1f} GB free, under {MIN_FREE_BYTES / 1e9:.0f}",
            "free some, or set `artifacts` to a larger disk",
        )
    if not os.access(existing, os.W_OK):
        findings.problem(f"{existing}: not writable", "set `artifacts` to a writable folder")


def _gpu(findings: Findings, device: str, *, torch: bool) -> None:
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        gpus = answer.stdout.splitlines() if answer.returncode == 0 else []
    usable = False
    if gpus and torch:
        import torch as library

        usable = library.cuda.is_available()
        if not usable:
            findings.problem(
                f"this torch ({library.__version__}) cannot use the GPU ({gpus[0]})",
                "install the CUDA build of the same version of torch",
            )
    findings.sections["gpu"] = {"found": gpus, "usable": usable, "device": device}
    if device == "cuda" and not usable:
        findings.problem("device is cuda, but no GPU is usable", "set `device: auto`")


def _dagster(findings: Findings) -> None:
    home = dagster_home()
    section: dict[str, Any] = {"home": str(home), "ready": (home / "dagster.yaml").is_file()}
    findings.sections["dagster"] = section
    if not section["ready"]:
        return  # the first run, or `phasewatch sync`, makes it
    expected, actual = (
        yaml.safe_load(path.read_text()) or {} for path in (SETTINGS, home / "dagster.yaml")
    )
    if expected != {name: actual.get(name) for name in expected}:  # others, `storage` say, are free
        findings.problem(
            f"{home}/dagster.yaml differs from config/dagster.yaml in pools, monitoring or retries",
            f"unless you changed it on purpose: cp config/dagster.yaml {home}/",
        )
    import dagster as dg

    with dg.DagsterInstance.from_config(str(home)) as instance:
        _automation(findings, section, instance)


def _automation(findings: Findings, section: dict[str, Any], instance: dg.DagsterInstance) -> None:
    import dagster as dg

    from resources.runs import PROCESS_TAG, UNFINISHED, is_gone

    section["daemon"] = any(s.healthy for s in instance.get_daemon_statuses().values())
    section["on"] = sorted(
        state.instigator_name
        for state in instance.all_instigator_state()
        if state.status.value in ("RUNNING", "DECLARED_IN_CODE")
    )
    if section["on"] and not section["daemon"]:
        findings.problem(
            f"{', '.join(section['on'])}: turned on, but no daemon is running",
            "make ui, or dagster-daemon run",
        )
    section["runs_under_way"] = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        name = f"{run.job_name} {run.tags.get('dagster/partition', '')}".strip()
        section["runs_under_way"].append(
            {"run": run.run_id, "what": name, "status": run.status.value}
        )
        if is_gone(run):
            findings.problem(
                f"run {run.run_id[:8]} ({name}) counts as under way, but its process "
                f"{run.tags[PROCESS_TAG]} is gone",
                "phasewatch sync",
            )


def _stages(findings: Findings, workspace: Workspace) -> None:
    """Every stage that is not current, grouped by what mends it."""
    from episodes.store import StoreError
    from stages.project import Project

    section: dict[str, Any] = {"path": str(workspace.store_path)}
    findings.sections["store"] = section
    project = Project(workspace)
    try:
        listing = project.listing
    except (StoreError, OSError) as error:
        findings.problem(str(error), "set `store`, or PHASEWATCH_STORE, to the folder of the store")
        return
    section |= {
        "episodes": len(listing.episodes),
        "batches": len(listing.batches),
        "differences": list(listing.differences),
    }
    if not listing.batches:
        findings.problem(f"{workspace.store_path}: no episode in it", "see docs/data-format.md")
        return
    stale = stale_statuses(project)
    findings.sections["stale"] = {remedy: _counted(statuses) for remedy, statuses in stale.items()}
    if any(status.code == "other_store" for group in stale.values() for status in group):
        findings.problem(
            f"{workspace.artifacts_path} holds artifacts of another store; a run would replace "
            "them",
            "use one artifacts folder per store: --artifacts, or PHASEWATCH_ARTIFACTS",
        )
    for remedy, statuses in stale.items():
        findings.problem("; ".join(_counted(statuses)), remedy)


def _counted(statuses: list[Status]) -> list[str]:
    """One line per kind of stage, key and reason: ``checkpoints host: 3 made with ...``."""
    groups: dict[tuple[str, str, str], list[Status]] = {}
    for status in statuses:
        kind = status.stage.partition("/")[0]
        key = "" if status.stage == "ingest" else status.key
        groups.setdefault((kind, key, status.code), []).append(status)
    lines = []
    for (kind, key, _), group in groups.items():
        where = f"{kind} {key}".strip()
        from stages.status import shortened

        first = group[0]
        if len(group) == 1:
            lines.append(first.line)
        else:
            names = shortened([s.key if kind == "ingest" else s.stage for s in group], ", ", 3)
            lines.append(f"{where}: {len(group)} {STATE_WORDS[first.state]} ({names})")
    return lines


def stale_statuses(project: Project) -> dict[str, list[Status]]:
    """Everything that is not current in the automatic stages, by the command that mends it."""
    groups: dict[str, list[Status]] = {}
    for stage in project.stages.values():
        if not stage.automatic:
            continue
        for status in project.statuses(stage):
            if not status.current:
                groups.setdefault(status.stage_remedy, []).append(status)
    return groups
