"""What `phasewatch doctor` looks at: nothing is written, made or mended here.

Without the extra ``orchestrate`` there is no graph to look at; the store is still looked at.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from episodes.store import StoreError
from pipelines.home import ROOT, dagster_home

if TYPE_CHECKING:
    import dagster as dg

    from episodes.store import StoreListing
    from resources.workspace import Workspace

EXTRAS = {
    "base": ("numpy", "numba", "polars", "pyarrow", "safetensors", "zstandard"),
    "train": ("torch", "xgboost", "scikit-learn", "matplotlib", "jinja2"),
    "orchestrate": ("dagster", "dagster-webserver"),
}
MIN_FREE_BYTES = 2_000_000_000


@dataclass
class Findings:
    """What was found, section by section, and the problems among it, each with its remedy."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)

    def problem(self, what: str, remedy: str) -> None:
        self.problems.append({"problem": what, "remedy": remedy})

    def as_document(self) -> dict[str, Any]:
        return {"ok": not self.problems, "problems": self.problems, **self.sections}


def examine(read_workspace: Callable[[], "Workspace"]) -> Findings:
    """Look at everything that can be looked at; settings only where there is what reads them."""
    findings = Findings()
    missing = _installed(findings)
    if "orchestrate" in missing or "train" in missing:
        return findings
    workspace = read_workspace()
    _disk(findings, workspace.artifacts_path)
    _gpu(findings, workspace.device)
    _dagster(findings)
    _store(findings, workspace)
    return findings


def _installed(findings: Findings) -> list[str]:
    missing = []
    for extra, packages in EXTRAS.items():
        versions = {name: _version(name) for name in packages}
        findings.sections.setdefault("installed", {})[extra] = versions
        absent = [name for name, found in versions.items() if found is None]
        if absent:
            missing.append(extra)
            findings.problem(
                f"{', '.join(absent)} not installed",
                "pip install -c constraints.txt -e ."
                if extra == "base"
                else f"pip install -c constraints.txt -e '.[{extra}]'",
            )
    return missing


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _disk(findings: Findings, folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    findings.sections["artifacts"] = {"path": str(folder), "free_gb": round(free / 1e9, 1)}
    if free < MIN_FREE_BYTES:
        findings.problem(
            f"{folder}: {free / 1e9:.1f} GB free, under {MIN_FREE_BYTES / 1e9:.0f}",
            "free some, or set `artifacts` to a larger disk",
        )
    if not os.access(there, os.W_OK):
        findings.problem(f"{there}: not writable", "set `artifacts` to a folder you may write to")


def _gpu(findings: Findings, device: str) -> None:
    found: list[str] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, check=False)
        found = told.stdout.splitlines() if told.returncode == 0 else []
    usable = False
    if found:
        import torch

        usable = torch.cuda.is_available()
        if not usable:
            findings.problem(
                f"a GPU is there ({found[0]}), but this torch ({torch.__version__}) cannot use it",
                "install the CUDA build of the same version of torch",
            )
    findings.sections["gpu"] = {"found": found, "usable": usable, "device": device}
    if device == "cuda" and not usable:
        findings.problem("device is cuda, and there is no usable GPU", "set `device: auto`")


def _dagster(findings: Findings) -> None:
    home = dagster_home()
    section: dict[str, Any] = {"home": str(home), "ready": (home / "dagster.yaml").is_file()}
    findings.sections["dagster"] = section
    if not section["ready"]:
        return  # the first run, or `phasewatch sync`, makes it
    wanted, there = (
        yaml.safe_load((folder / "dagster.yaml").read_text()) or {}
        for folder in (ROOT / "config", home)
    )
    if wanted != {name: there.get(name) for name in wanted}:  # others, `storage` say, are free
        findings.problem(
            f"{home}/dagster.yaml is not config/dagster.yaml: pools, monitoring or retries differ",
            f"unless you changed it on purpose: cp config/dagster.yaml {home}/",
        )
    import dagster as dg

    with dg.DagsterInstance.from_config(str(home)) as instance:
        _automation(findings, section, instance)


def _automation(
    findings: Findings, section: dict[str, Any], instance: "dg.DagsterInstance"
) -> None:
    from resources.runs import PROCESS_TAG, UNFINISHED, is_gone

    heard = instance.get_daemon_statuses().values()
    section["daemon"] = any(status.healthy for status in heard)
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
    import dagster as dg

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


def _why_page_is_stale(workspace: "Workspace", listing: "StoreListing") -> str | None:
    page = workspace.report_page
    if not page.is_file():
        return "there is none"
    drift = [path for b in listing.batches if (path := workspace.drift_path(b)).is_file()]
    if any(path.stat().st_mtime > page.stat().st_mtime for path in drift):
        return "it lacks the newest comparisons of batches: materialize `report`"
    return None


def _store(findings: Findings, workspace: "Workspace") -> None:
    from pipelines.staleness import stale_recipes
    from resources.evaluated import of_this_store

    findings.sections["store"] = section = {"path": str(workspace.store_path)}
    try:
        listing = workspace.listing()
    except (StoreError, OSError) as error:
        findings.problem(str(error), "set `store`, or PHASEWATCH_STORE, to the folder of the store")
        return
    section |= {
        "episodes": len(listing.episodes),
        "batches": len(listing.batches),
        "differences": list(listing.differences),
    }
    if not of_this_store(workspace, listing):
        findings.problem(
            f"{workspace.artifacts_path} holds what was made of another store, and a run would "
            "replace it",
            "name a folder for each store: --artifacts, or PHASEWATCH_ARTIFACTS",
        )
    batches = workspace.stale_batches(listing)
    recipes = stale_recipes(workspace, listing)
    findings.sections["stale"] = {
        "batches": batches,
        "recipes": {work.partition: work.why for work in recipes},
        "report": _why_page_is_stale(workspace, listing),
    }
    if not listing.batches:
        findings.problem(f"{workspace.store_path}: no episode in there", "see docs/data-format.md")
    if batches:
        findings.problem(
            f"{len(batches)} of {len(listing.batches)} batches are not ingested as they are now",
            "phasewatch run --ingest-only",
        )
    for work in recipes:
        findings.problem(
            f"recipe {work.partition}: {work.why}", f"phasewatch run --recipe {work.partition}"
        )
    if not batches and not recipes and not workspace.report_page.is_file():
        findings.problem(f"{workspace.report_page}: no report", "phasewatch run")
