"""The page: what has been evaluated and can be compared, to be read by people."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import polars as pl

from champion.history import now, read_champion
from config.disk import folder_lock
from config.signing import sealed, unsealed
from datasets.splits import RECIPES
from evaluation.documents import BatchDrift, Comparisons, EvalReport, Objection
from evaluation.tables import tables
from evaluation.wording import objection, plural
from features.files import file_sha256, fingerprint, write_atomically
from models.registry import VARIANTS
from stages.batch import INDEX
from stages.checkpoints import code_commit
from stages.decisions import read_tally
from stages.drift import DriftStage
from stages.evaluation import read_comparisons, read_report
from stages.host_rotation import read_rotation
from stages.manifest import Manifest, write_manifest
from stages.stage import Artifacts, ManifestStage, Progress, StageOutput
from stages.status import Reason, StageError, Status

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from stages.project import Project
    from stages.workspace import Workspace


HISTORY_FILE = "history.jsonl"
_HISTORY = {
    "made", "recipe", "model", "mode", "checkpoint_id", "dataset_version", "macro_f1",
    "macro_f1_filtered", "false_alarms_per_hour", "clean_time_alarmed",
}  # fmt: skip

log = logging.getLogger("phasewatch")


@dataclass(frozen=True)
class ComparableDocuments:
    """Documents that can be compared with each other, and why the others are left out."""

    reports: list[EvalReport] = field(default_factory=list)
    comparisons: list[Comparisons] = field(default_factory=list)
    left_out: list[Status] = field(default_factory=list)
    behind: list[Status] = field(default_factory=list)  # datasets without the newest batches
    versions: list[str] = field(default_factory=list)  # data versions of the documents


def comparable_documents(
    project: Project, recipes: Collection[str] = tuple(RECIPES)
) -> ComparableDocuments:
    """The documents of some recipes that speak of the checkpoints, datasets and layout in force.

    Batches that arrived or changed after a dataset was made leave none out: they are what the next
    training adds.
    """
    found = ComparableDocuments()
    stages = project.stages
    ingested = project.statuses(stages["ingest"])
    foreign = next((status for status in ingested if status.code == "other_store"), None)
    names = [(f"eval_reports/{v.name}", f"checkpoints/{v.name}") for v in VARIANTS]
    for recipe, (name, *upstream) in product(recipes, [*names, ("comparisons",)]):
        manifest = project.artifact(name, recipe)
        if manifest is None:
            continue
        dataset = project.status(stages["datasets"], recipe)
        behind = dataset.code in ("batches_added", "inputs")
        chain = [
            *([foreign] if foreign else []),
            *([] if behind else [dataset]),
            *(project.status(stages[s], recipe) for s in upstream),
            project.status(stages[name], recipe, verify=True),
        ]
        obstacle = next((s for s in chain if not s.usable or s.code == "other_store"), None)
        if obstacle:
            found.left_out.append(replace(obstacle, stage=name, key=recipe))
            continue
        if behind and dataset not in found.behind:
            found.behind.append(dataset)
        if name == "comparisons":
            found.comparisons.append(read_comparisons(manifest))
        else:
            found.reports.append(read_report(manifest))
        found.versions.append(manifest.version)
    return found


class ReportPageStage(ManifestStage):
    """One page on every checkpoint and recipe evaluated so far, to be read by people."""

    name = "report"
    version = "14"
    partition = ""
    job = "retrain"
    needs_inputs = False  # what is not current is left out and named
    docs = "evaluation.md"

    inputs = (
        *(f"eval_reports/{variant.name}" for variant in VARIANTS),
        "comparisons",
        "drift",
        "host_rotation",
        "decisions",
    )

    outputs = (
        StageOutput(
            name,
            "One page about every checkpoint and recipe evaluated so far, for people to read.",
            group="evaluate",
            kinds=frozenset({"html"}),
            fresh=True,
        ),
    )

    def folder(self, workspace: Workspace, key: str) -> Path:
        return workspace.report_page.parent

    def read(self, project: Project, key: str) -> Artifacts:
        (manifest,) = super().read(project, key).values()
        return {self.name: manifest if manifest and "page" in manifest.files else None}

    def fingerprint(self, project: Project, key: str) -> str:
        contents = _contents(project, comparable_documents(project), DriftStage.documents(project))
        return self._fingerprint(contents)

    def _fingerprint(self, contents: Mapping[str, str]) -> str:
        return fingerprint({"stage": self.version, "contents": contents})

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
        if manifest.stage_version != self.version:
            return Reason("version")
        before = manifest.facts["contents"]
        now = _contents(project, comparable_documents(project), DriftStage.documents(project))
        changed = [name for name in now if now[name] != before.get(name)]
        return Reason("contents", {"contents": changed})

    def make(
        self,
        project: Project,
        key: str,
        outputs: Collection[str],
        progress: Progress,
    ) -> Artifacts:
        from evaluation.page import render_report  # needs Jinja, which a base install lacks

        workspace, found = project.workspace, comparable_documents(project)
        if not found.reports:
            raise StageError("No evaluation report is current. Run: phasewatch run")
        drift = DriftStage.documents(project)
        verdicts = _verdicts(project)
        path = workspace.report_page
        path.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(path.parent):  # the page can be renewed by two processes at a time
            history = _record_history(path.with_name(HISTORY_FILE), found.reports)
        csv = tables(found.reports, found.comparisons) | {"history": pl.DataFrame(history)}
        page = render_report(
            found.reports,
            {
                "made": now(),
                "tables": list(csv),
                "history": history,
                "store": workspace.store,
                "episodes": sum(verdicts.values()),
                "verdicts": verdicts,
                "code_commit": code_commit(),
                "generated_from": found.versions,
                "left_out": [
                    {"recipe": s.key, "name": s.stage.rpartition("/")[2], "why": s.message}
                    for s in found.left_out
                ],
                "behind": {s.key: s.message for s in found.behind},
                "unavailable": _unavailable(project),
                **_champion(project),
                "rotation": read_rotation(rotation) if (rotation := _rotation(project)) else None,
                "alarms": read_tally(workspace),
                "not_compared": len(project.listing.batches) - len(drift),
            },
            found.comparisons,
            drift,
        )
        for name, table in csv.items():
            write_atomically(path.parent / "tables" / f"{name}.csv", table.write_csv().encode())
        write_atomically(path, page.encode())
        file = {"name": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size}
        facts = {
            "reports": len(found.reports),
            "comparisons": len(found.comparisons),
            "left_out": [status.as_row() for status in found.left_out],
            "contents": (contents := _contents(project, found, drift)),
        }
        identity = self._fingerprint(contents)
        manifest = Manifest(path.parent, identity, {"page": file}, facts, self.version)
        return {self.name: write_manifest(manifest)}

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        shown = {name: artifact.facts[name] for name in ("reports", "comparisons", "left_out")}
        return {**shown, "page": artifact.place("page")}

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        left_out = artifacts[self.name].facts["left_out"]
        note = f", {plural(len(left_out), 'document')} left out" if left_out else ""
        return f"{artifacts[self.name].place('page')}{note}"


def _contents(
    project: Project, found: ComparableDocuments, drift: list[BatchDrift]
) -> dict[str, str]:
    """Fingerprints of what the page is made from, by the name that a reader knows."""
    not_current = [
        {name: value for name, value in status.as_row().items() if name != "remedy"}
        for status in (*found.left_out, *found.behind)
    ]
    rotation = _rotation(project)
    contents = {
        "reports": [found.versions, not_current, _unavailable(project)],
        "champion": _champion(project),
        "host rotation": rotation.version if rotation else None,
        "drift": [document.model_dump() for document in drift],
        "verdicts": _verdicts(project),
        "logged alarms": read_tally(project.workspace).model_dump(exclude={"decisions"}),
    }
    return {name: fingerprint(value) for name, value in contents.items()}


def _record_history(path: Path, reports: Sequence[EvalReport]) -> list[dict[str, Any]]:
    """Add the figures of new checkpoints to the file; returns those of every one it ever had.

    A line that was damaged stays in the file, is named, and is not on the page.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:  # there is none yet
        lines = []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(unsealed(line, _HISTORY).value)
        except ValueError as error:
            log.warning("%s: line %d is left out of the page: it %s", path, number, error)
    known = {(row["recipe"], row["checkpoint_id"]) for row in rows}
    added = [
        {
            "made": now(),
            **{n: getattr(r, n) for n in ("recipe", "model", "mode", "checkpoint_id")},
            "dataset_version": r.dataset_version,
            "macro_f1": r.macro_f1.value,
            "macro_f1_filtered": r.filtered.macro_f1.value,
            "false_alarms_per_hour": r.detection.false_alarms_per_hour.value,
            "clean_time_alarmed": r.detection.clean_time_alarmed.value,
        }
        for r in reports
        if (r.recipe, r.checkpoint_id) not in known
    ]
    if added:
        new = [sealed(row, None, indent=None) for row in added]
        write_atomically(path, b"".join([*(line + b"\n" for line in lines), *new]))
    return [*rows, *added]


def _champion(project: Project) -> dict[str, Any]:
    """The champion's name, and the alarms over the budget that were accepted with it."""
    fault = project.champion_fault
    champion = None if fault else read_champion(project.workspace.champion_folder)
    if champion is None:
        return {"champion": None, "since": None, "accepted": None, "fault": fault}
    accepted = champion.accepted and {
        "by": champion.by,
        "since": champion.since,
        "why": champion.accepted["why"],
        "grounds": [objection(Objection(**ground)) for ground in champion.accepted["grounds"]],
    }
    return {"champion": champion.name, "since": champion.since, "accepted": accepted, "fault": ""}


def _rotation(project: Project) -> Manifest | None:
    """The host rotation, if it was made of the data and the layout in force."""
    status = project.status(project.stages["host_rotation"], "", verify=True)
    return project.artifact("host_rotation", "") if status.usable else None


def _unavailable(project: Project) -> dict[str, str]:
    """Why the store does not support a recipe, by recipe."""
    stage = project.stages["datasets"]
    return {recipe: project.status(stage, recipe).message for recipe in project.unavailable}


def _verdicts(project: Project) -> dict[str, int]:
    """Episodes by verdict, of the batches that are ingested."""
    verdicts: Counter[str] = Counter()
    for batch in project.listing.batches:
        index = project.artifacts("ingest", batch)[INDEX]
        verdicts.update(index.facts["verdicts"] if index else {})
    return dict(verdicts)
