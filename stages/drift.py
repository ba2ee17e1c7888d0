"""Drift: each batch compared with what the champion was trained on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from champion.history import REFERENCE_FILE, Champion, kept_path, load_kept, read_training
from datasets.windows import inputs, read_channel_means
from evaluation.documents import BatchDrift, DriftReference, DriftRow, document_text
from evaluation.drift import compare_batch, figures
from evaluation.scores import phases_of
from evaluation.wording import DRIFT_CHECKS, findings, sentence
from features.files import fingerprint, write_atomically
from features.shards import read_table
from stages.ingest import FEATURES, INDEX
from stages.stage import Artifacts, Check, CheckResult, Markdown, Output, Rows, Stage
from stages.status import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from stages.project import Project
    from stages.stage import Progress


@dataclass(frozen=True)
class DriftFile:
    """A batch's drift as written."""

    path: Path
    document: BatchDrift | None  # None: it has another form

    @property
    def version(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def fingerprint(self) -> str:
        return self.document.fingerprint if self.document else ""

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def folder(self) -> Path:
        return self.path


def _check(name: str) -> Callable[[Project, str, DriftFile | None], CheckResult]:
    def run(project: Project, key: str, artifact: DriftFile | None) -> CheckResult:
        if artifact is None or artifact.document is None:
            return CheckResult(True, description="Not compared: there is no champion that loads.")
        check = next(c for c in artifact.document.checks if c.name == name)
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
                **({"table": Rows(table)} if table else {}),
            },
        )

    return run


class Drift(Stage):
    """How a batch differs from the champion's training data by more than chance.

    It reports and stops nothing. Without a champion there is nothing to compare with.
    """

    name = "drift"
    version = "2"
    partition = "batch"
    job = "ingest"
    docs = "champion.md"

    inputs = ("ingest",)

    outputs = (
        Output(
            name,
            "How a batch differs from the champion's training data by more than chance. It "
            "reports and stops nothing; without a champion nothing is compared.",
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
        stage = project.stages[Drift.name]
        return [
            artifact.document
            for batch in project.listing.batches
            if (artifact := project.artifact(stage.name, batch)) is not None
            and project.status(stage, batch).code == "current"
        ]

    def read(self, project: Project, key: str) -> Artifacts:
        if project.champion is None:  # a former champion's drift says nothing of today
            return {self.name: None}
        path = project.workspace.drift_path(key)
        try:
            document = BatchDrift.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return {self.name: None}
        except (OSError, ValueError):
            document = None
        return {self.name: DriftFile(path, document)}

    def fingerprint(self, project: Project, key: str) -> str:
        champion = project.champion
        return fingerprint(
            {
                "stage": self.version,
                "champion": champion.checkpoints[champion.served] if champion else None,
                "shards": {
                    name: m.version for name, m in project.artifacts("ingest", key).items() if m
                },
                "seed": project.workspace.seed,
            }
        )

    def reason(
        self,
        project: Project,
        key: str,
        artifacts: Artifacts,
        *,
        verify: bool,
    ) -> Reason | None:
        (file,) = artifacts.values()
        if project.champion is None:
            return Reason("no_champion")
        if file is None:
            return Reason("not_made", {"outputs": [self.name]})
        if file.document is None:
            return Reason("format")
        if (
            file.document.champion.checkpoint_id
            != project.champion.checkpoints[project.champion.served]
        ):
            return Reason("checkpoint")
        same = file.fingerprint == self.fingerprint(project, key)
        return None if same else Reason("inputs", {"inputs": ["ingest"]})

    def make(
        self,
        project: Project,
        key: str,
        outputs: Collection[str],
        progress: Progress,
    ) -> Artifacts:
        path = project.workspace.drift_path(key)
        champion = project.champion
        if champion is None:
            return {self.name: None}
        document = batch_drift(project, key, champion)
        write_atomically(path, document_text(document).encode())
        return {self.name: DriftFile(path, document)}

    def facts(
        self,
        project: Project,
        output: str,
        artifact: DriftFile | None,
    ) -> Mapping[str, Any]:
        if artifact is None or artifact.document is None:
            return {"severity": "not compared"}
        document = artifact.document
        return {
            "severity": document.severity,
            "champion": f"{document.champion.model}_{document.champion.mode} "
            f"({document.champion.recipe})",
            "checkpoint_id": document.champion.checkpoint_id,
            "notes": Markdown("\n".join(f"- {sentence(n)}" for n in document.notes) or "none"),
            **figures(document),
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        file = artifacts[self.name]
        return file.document.severity if file else "not compared: there is no champion that loads"


def batch_drift(project: Project, batch: str, champion: Champion) -> BatchDrift:
    """A batch compared with the champion's training data.

    Raises:
        StageError: the reference kept with the champion is gone or unreadable.
    """
    workspace = project.workspace
    folder, layout = workspace.champion_folder, workspace.layout
    path = kept_path(folder, champion).with_name(REFERENCE_FILE)
    try:
        reference = DriftReference.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StageError(
            f"{path}: not a drift reference ({error}). Restore the file, or promote again: "
            f"phasewatch promote {champion.model}"
        ) from error
    checkpoint = load_kept(folder, champion, layout)
    shards = project.artifacts("ingest", batch)
    windows = read_channel_means(shards[FEATURES], reference.channels).with_columns(
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
            "fingerprint": project.stages[Drift.name].fingerprint(project, batch),
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
