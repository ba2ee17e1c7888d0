"""Drift: each batch compared with what the champion was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from champion.history import REFERENCE_FILE, Champion, kept_path, load_kept, read_training
from datasets.windows import inputs, read_channel_means
from evaluation.drift import CHECKS, REFERENCE_SCHEMA, WATCH_SCHEMA, compare_batch, figures
from evaluation.figures import document_text
from evaluation.scores import phases_of
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
    document: dict[str, Any]

    @property
    def version(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def fingerprint(self) -> str:
        return self.document.get("fingerprint", "")

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def folder(self) -> Path:
        return self.path


def _check(name: str) -> Callable[[Project, str, DriftFile | None], CheckResult]:
    def run(project: Project, key: str, artifact: DriftFile | None) -> CheckResult:
        if artifact is None:
            return CheckResult(True, description="Not compared: there is no champion that loads.")
        check = next(c for c in artifact.document["checks"] if c["name"] == name)
        severity, rows = check["severity"], check["rows"]
        table = [{k: "" if v is None else v for k, v in row.items()} for row in rows]
        return CheckResult(
            severity == "ok",
            "fail" if severity == "fail" else "warn",
            " ".join(check["said"]) or check["means"],
            {
                **{fact: check[fact] for fact in ("value", "expected", "chance") if fact in check},
                "changed": sum(row.get("severity", "ok") != "ok" for row in rows),
                **({"table": Rows(table)} if table else {}),
            },
        )

    return run


class Drift(Stage):
    """How a batch differs from the champion's training data by more than chance.

    It reports and stops nothing. Without a champion there is nothing to compare with.
    """

    name = "drift"
    version = "1"
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
        for check, means in CHECKS.items()
    )

    @staticmethod
    def documents(project: Project) -> list[dict[str, Any]]:
        """The drift of every batch that was compared with the champion in use."""
        stage = project.stages[Drift.name]
        return [
            artifact.document
            for batch in project.listing.batches
            if (artifact := project.artifact(stage.name, batch)) is not None
            and project.status(stage, batch).code == "current"
        ]

    def read(self, project: Project, key: str) -> Artifacts:
        path = project.workspace.drift_path(key)
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {self.name: None}
        except (OSError, ValueError):
            document = {}
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
        if file.document.get("schema") != WATCH_SCHEMA:
            return Reason("format")
        if (
            file.document["champion"]["checkpoint_id"]
            != (project.champion.checkpoints[project.champion.served])
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
        document = batch_drift(project, key, champion) | {
            "fingerprint": self.fingerprint(project, key)
        }
        write_atomically(path, document_text(document).encode())
        return {self.name: DriftFile(path, document)}

    def facts(
        self,
        project: Project,
        output: str,
        artifact: DriftFile | None,
    ) -> Mapping[str, Any]:
        if artifact is None:
            return {"severity": "not compared"}
        document = artifact.document
        return {
            "severity": document["severity"],
            "champion": f"{document['champion']['model']} ({document['champion']['recipe']})",
            "checkpoint_id": document["champion"]["checkpoint_id"],
            "notes": Markdown("\n".join(f"- {n}" for n in document["notes"]) or "none"),
            **figures(document),
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        file = artifacts[self.name]
        return file.document["severity"] if file else "not compared: there is no champion"


def batch_drift(project: Project, batch: str, champion: Champion) -> dict[str, Any]:
    """A batch compared with the champion's training data.

    Raises:
        StageError: the reference kept with the champion is gone or unreadable.
    """
    workspace = project.workspace
    folder, layout = workspace.champion_folder, workspace.layout
    path = kept_path(folder, champion).with_name(REFERENCE_FILE)
    try:
        reference = json.loads(path.read_bytes())
        if reference["schema"] != REFERENCE_SCHEMA:
            raise ValueError(f"its schema is {reference['schema']}")
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"{path}: not a drift reference ({error}). Restore the file, or promote again: "
            f"phasewatch promote {champion.model}"
        ) from error
    checkpoint = load_kept(folder, champion, layout)
    shards = project.artifacts("ingest", batch)
    windows = read_channel_means(shards[FEATURES], reference["channels"]).with_columns(
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
            "champion": {
                "model": champion.model,
                "mode": champion.mode,
                "recipe": champion.served,
                "checkpoint_id": checkpoint.artifact_id,
                "dataset_version": checkpoint.header["train_meta"]["dataset_version"],
            }
        },
        workspace.seed,
    )
