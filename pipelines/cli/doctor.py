"""The command ``doctor``: what is installed and what is stale. Nothing is written or made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import yaml

from config.messages import shortened
from config.paths import CLONE, nearest_existing
from episodes.environment import collector_paused
from pipelines.cli import options
from pipelines.cli.console import (
    EXTRAS,
    FAILED,
    OK,
    Bytes,
    CommandError,
    Document,
    Table,
    workspace_of,
)
from pipelines.home import SETTINGS, dagster_home

if TYPE_CHECKING:
    import dagster as dg

    from stages.project import Project
    from stages.status import Status
    from stages.workspace import Workspace

MIN_FREE_BYTES = 2_000_000_000
_SHOWN = 5  # items of a list
_LABELS = {
    "base": "packages of the base install",
    "train": "packages of the extra train",
    "orchestrate": "packages of the extra orchestrate",
    "serve": "packages of the extra serve",
    "sign": "packages of the extra sign",
    "path": "folder",
    "free_gb": "free disk space, GB",
    "bytes": "disk use",
    "pruned": "last pruned",
    "database": "size of its database",
    "found": "GPUs of this machine",
    "usable": "usable by torch",
    "device": "setting device",
    "home": "folder of its records",
    "ready": "folder is set up",
    "daemon": "daemon is running",
    "on": "automation turned on",
    "runs_under_way": "runs under way",
    "differences": "index and files differ",
}
"""What a key of the JSON document is called in the table."""


@dataclass(frozen=True)
class DoctorDocument(Document):
    """Problems, each with its remedy, and then everything that was looked at."""

    problems: list[dict[str, Any]] = field(default_factory=list)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    under_way: list[str] = field(default_factory=list)  # runs that may make what is not current

    def problem(self, problem: str, remedy: str, details: Sequence[str] = ()) -> None:
        self.problems.append({"problem": problem, "details": list(details), "remedy": remedy})

    def as_json(self) -> dict[str, Any]:
        return {"ok": not self.problems, "problems": self.problems, **self.sections}

    def text(self) -> Iterator[str | Table]:
        for item in self.problems:
            lines = [f"problem: {item['problem']}", *item["details"]]
            yield "\n    ".join(lines) + f"\n  remedy: {item['remedy']}"
        yield "" if self.problems else "no problem found: everything is current\n"
        rows = []
        for name, section in self.sections.items():
            for key, value in section.items():
                label = _LABELS.get(key, key)
                for line in _lines(value):
                    rows.append((name.replace("_", " "), label, line))
                    name = label = ""  # shown once
        yield Table(("about", "what", "found"), rows)

    @property
    def exit_code(self) -> int:
        return FAILED if self.problems else OK


def _lines(value: Any) -> list[str]:
    """A finding in words, one item per line; the first few of many."""
    if isinstance(value, dict):
        return [f"{name}: {item or 'missing'}" for name, item in value.items()]
    if isinstance(value, list):
        lines = [" ".join(i.values()) if isinstance(i, dict) else str(i) for i in value]
        more = len(lines) - _SHOWN
        return [*lines[:_SHOWN], *([f"and {more} more"] if more > 0 else [])] or ["none"]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return ["none" if value is None else str(value)]


def doctor(
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> DoctorDocument:
    """Show what is installed and what is not current.

    Problems come first, each with its remedy. Exit code 1 if there is one.
    """
    findings = DoctorDocument()
    missing = _installed(findings)
    if "base" not in missing:
        workspace = workspace_of(config, store, artifacts)
        _disk(findings, workspace)
        _gpu(findings, workspace.device, torch="train" not in missing)
        with collector_paused():
            if "orchestrate" not in missing:
                _dagster(findings, workspace)
            _stages(findings, workspace)
    return findings


def _installed(findings: DoctorDocument) -> list[str]:
    missing = []
    for extra, packages in EXTRAS.items():
        versions = {name: _version(name) for name in packages}
        findings.sections.setdefault("installed", {})[extra] = versions
        absent = [name for name, found in versions.items() if found is None]
        if absent:
            missing.append(extra)
        if absent and extra != "sign":  # signing is a choice
            package = ("." if CLONE else "phasewatch") + ("" if extra == "base" else f"[{extra}]")
            pinned = "-c constraints.txt -e " if CLONE else ""
            findings.problem(
                f"{', '.join(absent)} not installed", f"pip install {pinned}'{package}'"
            )
    return missing


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _disk(findings: DoctorDocument, workspace: Workspace) -> None:
    from stages.retention import disk_usage, last_pruned

    folder = workspace.artifacts_path
    existing = nearest_existing(folder)
    free = shutil.disk_usage(existing).free
    used = disk_usage(folder)
    largest = sorted(used.by_kind.items(), key=lambda item: -item[1])
    findings.sections["artifacts"] = {
        "path": str(folder),
        "free_gb": round(free / 1e9, 1),
        "bytes": {name: Bytes(n_bytes) for name, n_bytes in largest if n_bytes},
        "pruned": last_pruned(folder) or "never",
    }
    budget = workspace.artifacts_budget_gb * 1e9
    if budget and used.n_bytes > budget:
        findings.problem(
            f"{folder}: budget {Bytes(budget)}, in use {Bytes(used.n_bytes)}", "phasewatch prune"
        )
    if free < MIN_FREE_BYTES:
        findings.problem(
            f"{folder}: at least {MIN_FREE_BYTES / 1e9:.0f} GB must be free, got {free / 1e9:.1f}",
            "delete something, or set `artifacts` to a folder on a larger disk",
        )
    if not os.access(existing, os.W_OK):
        findings.problem(f"{existing}: not writable", "set `artifacts` to a writable folder")


def _gpu(findings: DoctorDocument, device: str, *, torch: bool) -> None:
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


def _dagster(findings: DoctorDocument, workspace: Workspace) -> None:
    from stages.workspace import SettingsError

    try:
        home = dagster_home(workspace)
    except SettingsError as error:
        problem, _, remedy = str(error).partition(" Run: ")
        findings.problem(problem, remedy)
        return
    section: dict[str, Any] = {"home": str(home), "ready": (home / "dagster.yaml").is_file()}
    findings.sections["dagster"] = section
    if not section["ready"]:
        return  # the first run, or `phasewatch sync`, makes it
    expected, actual = (
        yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for path in (SETTINGS, home / "dagster.yaml")
    )
    if expected != {name: actual.get(name) for name in expected}:  # others, `storage` say, are free
        findings.problem(
            f"{home}/dagster.yaml differs from config/dagster.yaml in pools, monitoring or retries",
            f"unless you changed it on purpose: cp config/dagster.yaml {home}/",
        )
    import dagster as dg

    from resources.records import record_bytes

    with dg.DagsterInstance.from_config(str(home)) as instance:
        section["database"] = Bytes(record_bytes(instance))
        _automation(findings, section, instance)


def _automation(
    findings: DoctorDocument, section: dict[str, Any], instance: dg.DagsterInstance
) -> None:
    import dagster as dg

    from resources.runs import PARTITION_TAG, UNFINISHED, dead_runs

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
    dead = {each.run.run_id: each for each in dead_runs(instance)}
    section["runs_under_way"] = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        name = f"{run.job_name} {run.tags.get(PARTITION_TAG, '')}".strip()
        section["runs_under_way"].append(
            {"run": run.run_id, "what": name, "status": run.status.value}
        )
        waits = run.status is dg.DagsterRunStatus.QUEUED and not section["daemon"]
        if run.run_id not in dead and not waits:
            findings.under_way.append(name)
    for each in dead.values():
        findings.problem(f"{each.name} counts as under way, but {each.why}", "phasewatch sync")


def _stages(findings: DoctorDocument, workspace: Workspace) -> None:
    """Every stage that is not current, in counts."""
    from datasets.exclusions import ExclusionError, read_exclusions
    from datasets.splits import RECIPES
    from episodes.store import StoreError
    from pipelines.cli.execution import check_names
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
        findings.problem(f"{workspace.store_path}: no episodes", "see docs/data-format.md")
        return
    try:
        read_exclusions(workspace.exclusions_path, {each.episode_id for each in listing.episodes})
    except ExclusionError as error:
        findings.problem(str(error), "edit the file; until then no dataset can be made")
    try:
        check_names(project, RECIPES)
    except CommandError as error:
        findings.problem(str(error), "edit the configuration; until then no run begins")
    statuses = [
        status
        for stage in project.stages.values()
        if stage.automatic
        for status in project.statuses(stage, verify="changed")
        if status.available
    ]
    due = [status for status in statuses if status.due]
    section["unavailable"] = [
        f"recipe {recipe}: {project.status(project.stages['datasets'], recipe).message}"
        for recipe in project.unavailable
    ]
    findings.sections["not_current"] = counts = _counted(statuses)
    if any(status.code == "other_store" for status in due):
        findings.problem(
            f"{workspace.artifacts_path} holds artifacts of another store; a run would replace "
            "them",
            "use one artifacts folder per store: --artifacts, or PHASEWATCH_ARTIFACTS",
        )
    if due:
        listed = [f"{kind}: {line}" for kind, lines in counts.items() for line in lines]
        remedy = _remedy(project, due, findings.under_way)
        findings.problem("not current", remedy, listed)
    _champion(findings, project)


def _champion(findings: DoctorDocument, project: Project) -> None:
    """Whether the champion can be trusted and scores."""
    from champion.history import ChampionError

    try:
        if why := _distrusted(project.workspace):
            findings.problem(*why)
        champion = project.status(project.stages["champion"], "", verify=True)
    except ChampionError as error:
        findings.problem(str(error), "see docs/champion.md")
        return
    if champion.state not in ("current", "missing"):
        remedy = champion.remedy.removeprefix("Run: ")
        findings.problem(champion.line, remedy, champion.differences)


def _distrusted(workspace: Workspace) -> tuple[str, str] | None:
    """Why nobody who is trusted here stands for the champion, and what to do.

    None where no key is, where one does, or where the stage says it.
    """
    from champion.history import read_pointer, signature_problem, signing_remedy
    from config.signing import trusted_keys

    pointer = read_pointer(workspace.champion_folder)
    if workspace.require_signatures or not trusted_keys():
        return None
    why = signature_problem(workspace.champion_folder, pointer)
    return (why, signing_remedy(pointer.champion)) if why and pointer.champion else None


def _counted(statuses: list[Status]) -> dict[str, list[str]]:
    """Kind of stage -> ``16 of 48: made with other settings (gbt_realistic host, ...)``."""
    from stages.status import Reason

    groups: dict[tuple[str, str], list[Status]] = {}
    totals: Counter[str] = Counter()
    for status in statuses:
        kind = status.stage.partition("/")[0]
        totals[kind] += 1
        if status.due:
            problem = "missing" if status.code == "not_made" else status.message
            if status.code in ("inputs", "inputs_missing"):  # not a line per model
                names = status.reason.details["inputs"]
                kinds = list(dict.fromkeys(name.partition("/")[0] for name in names))
                problem = replace(status, reason=Reason(status.code, {"inputs": kinds})).message
            if status.code == "signature":  # the message names the folder
                problem = f"{status.reason.details['why']}, and signatures are required"
            groups.setdefault((kind, problem), []).append(status)
    counts: dict[str, list[str]] = {}
    for (kind, problem), group in groups.items():
        names = [f"{s.stage.partition('/')[2]} {s.key}".strip() for s in group]
        where = f" ({shortened(names, ', ', 3)})" if len(group) < totals[kind] else ""
        counts.setdefault(kind, []).append(f"{len(group)} of {totals[kind]}: {problem}{where}")
    return counts


def _remedy(project: Project, due: list[Status], under_way: list[str]) -> str:
    """The one command that makes all of it current, once the runs under way have ended.

    If signatures are missing, a key to sign with comes first.
    """
    from config.signing import signing_key

    unsigned = any(s.code == "signature" for s in due) and signing_key() is None
    key = "phasewatch keys new NAME, then: " if unsigned else ""
    runs = shortened(under_way, ", ", 3)
    wait = f"wait for the runs under way ({runs}), then: " if under_way else ""
    keys = {s.key for s in due if project.stages[s.stage].job != "ingest"}
    # the page shows drift, so it is due after that
    if not keys and all(s.stage != "drift" for s in due):
        return f"{key}{wait}phasewatch run --ingest-only"
    recipes = sorted(keys - {""})
    return f"{key}{wait}phasewatch run" + (f" --recipe {recipes[0]}" if len(recipes) == 1 else "")
