"""Evaluation: held-out predictions, one report per checkpoint, comparisons."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from datasets.windows import inputs, read_dataset
from evaluation import documents
from evaluation.baselines import shortcut_predictions
from evaluation.comparisons import compare
from evaluation.documents import EvalReport, document_text
from evaluation.report import evaluate
from evaluation.scores import ABLATED, prediction_rows
from evaluation.wording import alarms, by_job, sentence
from features.files import fingerprint
from features.registry import MODES
from features.shards import read_table, write_table
from models.registry import VARIANTS, Variant
from stages.datasets import dataset_shards
from stages.stage import Check, CheckResult, FolderStage, Markdown, Output
from stages.status import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from models.checkpoint import Checkpoint
    from stages.manifest import Draft, Manifest
    from stages.project import Project
    from stages.stage import Artifacts, Progress
    from stages.workspace import Workspace

PREDICTIONS_VERSION = "5"
REPORT_VERSION = "6"
"""Of reports and comparisons: documents of one form."""


class HeldOutPredictions(FolderStage):
    """Every checkpoint's probabilities for the windows of val and test, and the baselines'."""

    name = "held_out_predictions"
    version = PREDICTIONS_VERSION
    partition = "recipe"
    job = "retrain"
    docs = "evaluation.md"

    inputs = ("datasets", *(f"checkpoints/{variant.name}" for variant in VARIANTS))

    outputs = (
        Output(
            name,
            "Every checkpoint's probabilities for the windows of val and test, and the baselines'.",
            group="evaluate",
            kinds=frozenset({"parquet"}),
        ),
    )

    def folder(self, workspace: Workspace, key: str) -> Path:
        return workspace.held_out_predictions_folder(key)

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint(
            {
                "stage": self.version,
                "dataset": project.existing("datasets", key).version,
                "checkpoints": checkpoint_ids(project, key),
                "seed": project.workspace.seed,
            }
        )

    def why(self, project: Project, key: str, manifest: Manifest) -> Reason:
        if manifest.facts.get("version") != self.version:
            return Reason("format")
        changed = changed_checkpoints(project, key, manifest.facts["checkpoints"])
        dataset = project.artifact("datasets", key)
        if dataset is None or manifest.facts["dataset_version"] != dataset.version:
            changed.insert(0, "datasets")
        return Reason("inputs", {"inputs": changed}) if changed else Reason("settings")

    def write(
        self,
        project: Project,
        key: str,
        staged: Draft,
        progress: Progress,
    ) -> dict[str, Any]:
        dataset = project.existing("datasets", key)
        layout, shards = project.workspace.layout, dataset_shards(project, dataset)
        table = read_dataset(dataset)
        held_out = table.filter(pl.col("split") != "train")
        parts = []
        for done, variant in enumerate(VARIANTS):
            progress(done, len(VARIANTS), variant.name)
            X = inputs(held_out, shards, variant, layout)
            parts.append(
                checkpoint_predictions(held_out, project.checkpoint(variant, key), X, layout.phases)
            )
        parts.append(shortcut_predictions(table, layout.phases, MODES, project.workspace.seed))
        path = staged.new_file("predictions", ".parquet")
        write_table(pl.concat(parts).to_arrow(), path)
        return {
            "version": self.version,
            "recipe": key,
            "windows": dict(sorted(Counter(held_out["split"]).items())),
            "dataset_version": dataset.version,
            "checkpoints": checkpoint_ids(project, key),
        }

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        return {
            **{f"{split}_windows": n for split, n in artifact.facts["windows"].items()},
            "checkpoints": artifact.facts["checkpoints"],
        }


def checkpoint_ids(project: Project, recipe: str) -> dict[str, str]:
    """Ids of a recipe's checkpoints, by variant.

    Raises:
        StageError: one is missing.
    """
    return {
        variant.name: project.existing(f"checkpoints/{variant.name}", recipe).version
        for variant in VARIANTS
    }


def changed_checkpoints(project: Project, recipe: str, before: Mapping[str, str]) -> list[str]:
    """Stages of the checkpoints that are missing or have another id than before."""
    stages = [f"checkpoints/{variant.name}" for variant in VARIANTS]
    files = [project.artifact(stage, recipe) for stage in stages]
    return [
        stage
        for stage, variant, file in zip(stages, VARIANTS, files, strict=True)
        if file is None or file.header is None or file.version != before.get(variant.name)
    ]


def checkpoint_predictions(
    windows: pl.DataFrame, checkpoint: Checkpoint, X: Any, classes: tuple[str, ...]
) -> pl.DataFrame:
    """A checkpoint's rows, and those of its ablations under names of their own."""
    name, mode = checkpoint.header["name"], checkpoint.header["mode"]
    predicted = {name: checkpoint.model.predict_proba(X)} | {
        f"{name}{ABLATED}{part}": proba for part, proba in checkpoint.model.ablations(X).items()
    }
    return pl.concat(
        prediction_rows(windows, known_as, mode, checkpoint.artifact_id, proba, classes)
        for known_as, proba in predicted.items()
    )


def read_predictions(manifest: Manifest) -> pl.DataFrame:
    """The table of held-out predictions."""
    return pl.DataFrame(read_table(manifest.path("predictions")))


def _false_alarms_within_budget(project: Project, key: str, artifact: Manifest) -> CheckResult:
    report = read_report(artifact)
    found = report.detection
    rate, share = found.false_alarms_per_hour.value, found.clean_time_alarmed.value
    facts = {
        "false_alarms_per_hour": rate,
        "budget_per_hour": found.budget_per_hour,
        "clean_time_alarmed": share,
        "budget_clean_time": found.budget_clean_time,
        "provisional": found.provisional,
    }
    within = (rate or 0) <= found.budget_per_hour and (share or 0) <= found.budget_clean_time
    return CheckResult(within, "warn", facts=facts)


class EvalReports(FolderStage):
    """Evaluates one variant."""

    version = REPORT_VERSION
    partition = "recipe"
    job = "retrain"
    docs = "evaluation.md"

    def __init__(self, variant: Variant):
        self.variant = variant
        self.name = f"eval_reports/{variant.name}"
        self.inputs = ("held_out_predictions", f"checkpoints/{variant.name}")
        description = (
            f"How good {variant.model} ({variant.mode}) is on the test split: macro F1 with a 95 % "
            "interval over episodes, per class, profile and host, next to the baselines."
        )
        kinds, input_kind = frozenset({"json"}), variant.spec.input_kind
        self.outputs = (Output(self.name, description, "evaluate", kinds, input_kind),)
        self.checks = (
            Check(
                "false_alarms_within_budget",
                self.name,
                "On test, false alarms per hour and clean time alarmed stay within the budget.",
                _false_alarms_within_budget,
            ),
        )

    def folder(self, workspace: Workspace, key: str) -> Path:
        return workspace.report_folder(key) / self.variant.name

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint(
            {
                "stage": self.version,
                "variant": self.variant.name,
                "predictions": project.existing("held_out_predictions", key).version,
                "policy": asdict(project.workspace.report),
            }
        )

    def why(self, project: Project, key: str, manifest: Manifest) -> Reason:
        """The other models' predictions may have changed; that does not matter to this report."""
        try:
            report = read_report(manifest)
        except ValueError:
            return Reason("format")
        checkpoint = project.artifact(f"checkpoints/{self.variant.name}", key)
        dataset = project.artifact("datasets", key)
        made_from = (report.checkpoint_id, report.dataset_version)
        same = checkpoint and dataset and made_from == (checkpoint.version, dataset.version)
        return Reason("settings") if same else Reason("inputs", {"inputs": list(self.inputs)})

    def write(
        self,
        project: Project,
        key: str,
        staged: Draft,
        progress: Progress,
    ) -> dict[str, Any]:
        from evaluation.cards import model_card  # needs Jinja, which a base install lacks

        workspace = project.workspace
        dataset = project.existing("datasets", key)
        header = project.artifact(f"checkpoints/{self.variant.name}", key).meta
        report = evaluate(
            read_predictions(project.existing("held_out_predictions", key)),
            self.variant.model,
            self.variant.mode,
            workspace.layout.phases,
            dataset.facts,
            {
                "recipe": key,
                "dataset_version": dataset.version,
                "contract_hash": header["contract_hash"],
                "schema_hash": header["schema_hash"],
                "validation_index_digest": dataset.facts["validation_index_digest"],
                "code_commit": header["train_meta"]["code_commit"],
                "config": header["config"],
            },
            workspace.report,
            workspace.layout.window,
            header["train_meta"],
        )
        staged.new_file("report", ".json").write_text(document_text(report))
        staged.new_file("card", ".md").write_text(model_card(header, report))
        return {"recipe": key, "variant": self.variant.name}

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        from evaluation.cards import body_of
        from evaluation.charts import confusion_png  # Matplotlib: slow to load, needed only here

        report = read_report(artifact)
        picture = confusion_png(
            report.confusion, f"{self.variant.name}, {artifact.facts['recipe']}"
        )
        encoded = base64.b64encode(picture).decode()
        calibration, detection = report.calibration, report.detection
        figures = {
            "macro_f1": report.macro_f1.value,
            "macro_f1_low": report.macro_f1.low,
            "macro_f1_high": report.macro_f1.high,
            "ece": calibration.as_trained.ece.value,
            "ece_scaled": calibration.scaled.ece.value,
            "brier": calibration.as_trained.brier.value,
            "detected_share": detection.detected_share.value,
            "median_delay_s": detection.median_delay_s.value,
            "false_alarms_per_hour": detection.false_alarms_per_hour.value,
            "clean_time_alarmed": detection.clean_time_alarmed.value,
            "alarm_threshold": detection.threshold.value,
            "threshold_provisional": detection.provisional,
            **{
                f"{metric}_job_{part.job}": getattr(part, metric).value
                for part in detection.by_job
                for metric in ("false_alarms_per_hour", "clean_time_alarmed")
            },
            "alarms": Markdown(
                "\n".join(f"- {text}" for text in (*alarms(detection), *by_job(detection)))
            ),
            "operating_curve": detection.operating_curve.model_dump(),
            "test_windows": report.n_windows,
            "test_episodes": report.n_episodes,
            "checkpoint_id": report.checkpoint_id,
            "confusion": Markdown(f"![confusion](data:image/png;base64,{encoded})"),
            "warnings": Markdown("\n".join(f"- {sentence(w)}" for w in report.warnings) or "none"),
            "model_card": Markdown(body_of(artifact.path("card").read_text())),
            "card": artifact.path("card"),
            "report": artifact.path("report"),
            **{f"f1_{row.name}": row.f1.value for row in report.per_class},
            **{f"baseline_{row.name}": row.macro_f1.value for row in report.baselines},
        }
        return {name: value for name, value in figures.items() if value is not None}

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        figure = read_report(artifacts[self.name]).macro_f1
        return f"macro F1 {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


class Comparisons(FolderStage):
    """Which model is better than which, paired on the same resampled test episodes."""

    name = "comparisons"
    version = REPORT_VERSION
    partition = "recipe"
    job = "retrain"
    docs = "evaluation.md"

    inputs = ("held_out_predictions",)

    outputs = (
        Output(
            name,
            "Which model is better than which, paired on the same resampled test episodes.",
            group="evaluate",
            kinds=frozenset({"json"}),
        ),
    )

    def folder(self, workspace: Workspace, key: str) -> Path:
        return workspace.comparisons_folder(key)

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint(
            {
                "stage": self.version,
                "predictions": project.existing("held_out_predictions", key).version,
                "policy": asdict(project.workspace.report),
            }
        )

    def why(self, project: Project, key: str, manifest: Manifest) -> Reason:
        try:
            document = read_comparisons(manifest)
        except ValueError:
            return Reason("format")
        before = {
            f"{predictor.model}_{predictor.mode}": predictor.checkpoint_id
            for predictor in document.predictors
            if predictor.kind == "model"
        }
        changed = changed_checkpoints(project, key, before)
        return Reason("inputs", {"inputs": changed}) if changed else Reason("settings")

    def write(
        self,
        project: Project,
        key: str,
        staged: Draft,
        progress: Progress,
    ) -> dict[str, Any]:
        dataset = project.existing("datasets", key)
        document = compare(
            read_predictions(project.existing("held_out_predictions", key)),
            [(variant.model, variant.mode) for variant in VARIANTS],
            project.workspace.layout.phases,
            dataset.facts,
            {"recipe": key, "dataset_version": dataset.version},
            project.workspace.report,
        )
        staged.new_file("comparisons", ".json").write_text(document_text(document))
        return {"recipe": key}

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        families = read_comparisons(artifact).families
        return {
            "comparisons": sum(len(family.comparisons) for family in families),
            **{
                f"reference_{family.mode}": family.reference.model
                for family in families
                if family.reference
            },
        }


def read_report(manifest: Manifest) -> EvalReport:
    """An evaluation report as written.

    Raises:
        ValueError: it has another form.
    """
    return EvalReport.model_validate_json(manifest.path("report").read_bytes())


def read_comparisons(manifest: Manifest) -> documents.Comparisons:
    """The comparisons of a recipe as written.

    Raises:
        ValueError: they have another form.
    """
    return documents.Comparisons.model_validate_json(manifest.path("comparisons").read_bytes())
