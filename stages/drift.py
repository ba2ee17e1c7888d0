"""Drift: each batch compared with what the champion was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from champion.history import ChampionEntry, ChampionError, load_checkpoint_copy, read_training
from datasets.windows import inputs, read_channel_means
from evaluation.documents import BatchDrift, DriftRow, document_text
from evaluation.drift import THRESHOLDS, compare_batch, drift_figures
from evaluation.scores import phases_of
from evaluation.wording import DRIFT_CHECKS, findings, sentence
from features.files import fingerprint
from features.shards import read_table
from stages.batch import FEATURES, INDEX
from stages.drift_reference import drift_reference
from stages.stage import (
    Artifacts,
    Check,
    CheckResult,
    FactTable,
    FolderStage,
    Markdown,
    Progress,
    StageOutput,
)
from stages.status import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from stages.manifest import Draft, Manifest
    from stages.project import Project


def read_drift(manifest: Manifest) -> BatchDrift:
    """A batch's drift as written.

    Raises:
        ValueError: it has another form.
    """
    return BatchDrift.model_validate_json(manifest.path("drift").read_bytes())


def _not_compared(project: Project) -> str:
    """Why there is nothing to compare a batch with."""
    try:
        status = project.status(project.stages["champion"], "")
    except ChampionError as error:
        return f"Not compared: {error}"
    if status.code == "not_made":
        return "Not compared: there is no champion"
    return f"Not compared: the champion has a problem: {status.message}"


def _check(name: str) -> Callable[[Project, str, Manifest | None], CheckResult]:
    def run(project: Project, key: str, artifact: Manifest | None) -> CheckResult:
        if artifact is None:
            return CheckResult(True, description=_not_compared(project))
        check = next(c for c in read_drift(artifact).checks if c.name == name)
        severity, rows = check.severity, [dict(row) for row in check.rows]
        used = [k for k in DriftRow.model_fields if any(row[k] is not None for row in rows)]
        table = [{k: "" if row[k] is None else row[k] for k in used} for row in rows]
        numbers = {fact: getattr(check, fact) for fact in ("value", "expected", "chance")}
        return CheckResult(
            severity == "ok",
            "fail" if severity == "fail" else "warn",
            " ".join(findings(check)) or DRIFT_CHECKS[check.name],
            {
                **numbers,
                "changed": sum(row.severity not in (None, "ok") for row in check.rows),
                **({"table": FactTable(table)} if table else {}),
            },
        )

    return run


class DriftStage(FolderStage):
    """How a batch differs from the champion's training data by more than chance.

    It reports and stops nothing. Without a champion there is nothing to compare with.
    """

    name = "drift"
    version = "3"
    partition = "batch"
    job = "ingest"
    docs = "champion.md"

    inputs = ("ingest",)

    outputs = (
        StageOutput(
            name,
            "Where a batch differs from the champion's training data more than chance explains. It "
            "only reports and never stops a run; without a champion nothing is compared.",
            group="ingest",
            kinds=frozenset({"json"}),
        ),
    )

    checks = tuple(
        Check(f"{check}_as_in_training", "drift", means, _check(check))
        for check, means in DRIFT_CHECKS.items()
    )

    @staticmethod
    def documents(project: Project) -> list[BatchDrift]:
        """The drift of every batch that was compared with the champion in use."""
        stage = project.stages[DriftStage.name]
        return [
            read_drift(artifact)
            for batch in project.listing.batches
            if (artifact := project.artifact(stage.name, batch)) is not None
            and project.status(stage, batch, verify=True).code == "current"
        ]

    def idle(self, project: Project) -> bool:
        return project.champion is None

    def read(self, project: Project, key: str) -> Artifacts:
        if project.champion is None:  # a former champion's drift says nothing of today
            return {self.name: None}
        return super().read(project, key)

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint(
            {
                "stage": self.version,
                **self._made_from(project, key),
                "seed": project.workspace.seed,
                "thresholds": THRESHOLDS.model_dump(),
            }
        )

    def _made_from(self, project: Project, key: str) -> dict[str, Any]:
        champion = project.champion
        return {
            "champion": champion.checkpoints[champion.served] if champion else None,
            "shards": {
                name: m.version for name, m in project.artifacts("ingest", key).items() if m
            },
        }

    def reason(
        self, project: Project, key: str, artifacts: Artifacts, *, verify: bool
    ) -> Reason | None:
        if project.champion is None:
            return Reason("no_champion")
        found = super().reason(project, key, artifacts, verify=verify)
        return Reason("not_compared") if found and found.code == "not_made" else found

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
        now = self._made_from(project, key)
        if manifest.facts["champion"] != now["champion"]:
            return Reason("checkpoint")
        if manifest.facts["shards"] != now["shards"]:
            return Reason("inputs", {"inputs": ["ingest"]})
        return Reason("settings")

    def make(
        self, project: Project, key: str, outputs: Collection[str], progress: Progress
    ) -> Artifacts:
        if project.champion is None:
            return {self.name: None}
        return super().make(project, key, outputs, progress)

    def write(
        self, project: Project, key: str, staged: Draft, progress: Progress
    ) -> dict[str, Any]:
        champion = project.champion
        assert champion is not None  # make has looked
        document = batch_drift(project, key, champion)
        folder = self.folder(project.workspace, key)
        folder.with_name(f"{key}.json").unlink(missing_ok=True)  # where versions 1 and 2 wrote
        staged.new_file("drift", ".json").write_text(document_text(document), encoding="utf-8")
        return self._made_from(project, key)

    def facts(
        self,
        project: Project,
        output: str,
        artifact: Manifest | None,
    ) -> Mapping[str, Any]:
        if artifact is None:
            return {"severity": "not compared", "why": _not_compared(project)}
        document = read_drift(artifact)
        return {
            "severity": document.severity,
            "champion": f"{document.champion.model}_{document.champion.mode} "
            f"({document.champion.recipe})",
            "checkpoint_id": document.champion.checkpoint_id,
            "notes": Markdown("\n".join(f"- {sentence(n)}" for n in document.notes) or "none"),
            **drift_figures(document),
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        manifest = artifacts[self.name]
        if manifest is None:
            return _not_compared(project)
        return f"compared with the champion's training data: {read_drift(manifest).severity}"


def batch_drift(project: Project, batch: str, champion: ChampionEntry) -> BatchDrift:
    """A batch compared with the champion's training data.

    Raises:
        ChampionError, StageError: see ``drift_reference``.
    """
    workspace = project.workspace
    folder, layout = workspace.champion_folder, workspace.layout
    reference = drift_reference(project, champion)
    checkpoint = load_checkpoint_copy(folder, champion, layout)
    shards = project.artifacts("ingest", batch)
    windows = read_channel_means(shards[FEATURES], reference.channels, layout).with_columns(
        batch=pl.lit(batch)
    )
    X = inputs(windows, {batch: shards}, checkpoint.variant, layout)
    predicted = phases_of(checkpoint.model.predict_proba(X), layout.phases)
    training = read_training(folder, champion, champion.served)["episode_id"]
    index = read_table(shards[INDEX].path("index"), ["host_id", "verdict"])
    return compare_batch(
        batch,
        index["host_id"][0].as_py(),
        windows.with_columns(
            pl.Series("predicted", predicted, dtype=pl.String),
            pl.col("episode_id").is_in(training.implode()).alias("seen_in_training"),
        ),
        index["verdict"].to_pylist(),
        reference,
        {
            "fingerprint": project.stages[DriftStage.name].fingerprint(project, batch),
            "champion": {
                "model": champion.model,
                "mode": champion.mode,
                "recipe": champion.served,
                "checkpoint_id": checkpoint.artifact_id,
                "dataset_version": checkpoint.header["train_meta"]["dataset_version"],
            },
        },
        workspace.seed,
    )
