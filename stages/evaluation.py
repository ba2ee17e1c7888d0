"""Evaluation: one report per checkpoint, and comparisons."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from champion.history import SERVED_RECIPE
from datasets.windows import inputs, read_dataset
from evaluation import documents
from evaluation.comparisons import compare
from evaluation.documents import EvalReport, Latency, document_text
from evaluation.latency import CALLS, measure
from evaluation.report import evaluate
from evaluation.wording import alarms, by_job, number, sentence, span, unlike
from features.files import fingerprint
from models.hyperparameters import dotted
from models.registry import VARIANTS, Variant
from stages.alarm_rules import read_alarm_rule, threshold_note
from stages.datasets import dataset_shards
from stages.explanations import explain
from stages.held_out_predictions import changed_checkpoints, read_predictions
from stages.likeness import likeness_of_test
from stages.stage import Artifacts, Check, CheckResult, FolderStage, Markdown, Progress, StageOutput
from stages.status import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stages.manifest import Draft, Manifest
    from stages.project import Project
    from stages.workspace import Workspace


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


class EvalReportsStage(FolderStage):
    """Evaluates one variant."""

    version = "11"
    partition = "recipe"
    job = "retrain"
    docs = "evaluation.md"

    def __init__(self, variant: Variant):
        self.variant = variant
        self.name = f"eval_reports/{variant.name}"
        self.inputs = (
            "held_out_predictions",
            f"alarm_rules/{variant.name}",
            f"likeness/{variant.mode}",
        )
        description = (
            f"How good {variant.model} ({variant.mode}) is on the test split: macro F1 with a 95% "
            "interval over episodes, per class, profile and host, next to the baselines."
        )
        kinds, input_kind = frozenset({"json"}), variant.spec.input_kind
        self.outputs = (StageOutput(self.name, description, "evaluate", kinds, input_kind),)
        self.checks = (
            Check(
                "false_alarms_within_budget",
                self.name,
                "On test, false alarms per hour and clean time alarmed stay within the budget.",
                _false_alarms_within_budget,
            ),
        )

    def folder(self, workspace: Workspace, key: str) -> Path:
        return workspace.report_page.parent / key / self.variant.name

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint(
            {
                "stage": self.version,
                "variant": self.variant.name,
                "predictions": project.existing("held_out_predictions", key).version,
                "alarm_rule": project.existing(f"alarm_rules/{self.variant.name}", key).version,
                "likeness": project.existing(f"likeness/{self.variant.mode}", key).version,
                "policy": asdict(project.workspace.report),
            }
        )

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
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
        checkpoint = project.artifact(f"checkpoints/{self.variant.name}", key)
        header = checkpoint.meta
        chosen = project.existing(f"alarm_rules/{self.variant.name}", key)
        predictions = read_predictions(project.existing("held_out_predictions", key))
        report = evaluate(
            predictions,
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
                "config": dict(dotted(header["config"])),
                "checkpoint_bytes": checkpoint.n_bytes,
            },
            workspace.report,
            workspace.layout.window,
            header["train_meta"],
            read_alarm_rule(chosen),
            threshold_note(chosen),
            likeness_of_test(project.existing(f"likeness/{self.variant.mode}", key)),
            explain(project, key, self.variant, predictions, errors=key == SERVED_RECIPE),
        )
        staged.new_file("report", ".json").write_text(document_text(report), encoding="utf-8")
        staged.new_file("card", ".md").write_text(model_card(header, report), encoding="utf-8")
        latency = measure_latency(project, key, self.variant)
        return {"recipe": key, "variant": self.variant.name, "latency": latency.model_dump()}

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
            "macro_f1_filtered": report.filtered.macro_f1.value,
            "alarm_rule_id": report.filtered.alarm_rule_id,
            "ece": calibration.as_trained.ece.value,
            "ece_scaled": calibration.scaled.ece.value,
            "brier": calibration.as_trained.brier.value,
            "detected_share": detection.detected_share.value,
            "median_delay_s": detection.median_delay_s.value,
            "false_alarms_per_hour": detection.false_alarms_per_hour.value,
            "clean_time_alarmed": detection.clean_time_alarmed.value,
            "alarm_threshold": detection.threshold.value,
            "threshold_provisional": detection.provisional,
            "unlike_share": report.unlike and report.unlike.share.value,
            "unlike_alpha": report.unlike and report.unlike.alpha,
            **{
                f"{metric}_job_{part.job}": getattr(part, metric).value
                for part in detection.by_job
                for metric in ("false_alarms_per_hour", "clean_time_alarmed")
            },
            "alarms": Markdown(
                "\n".join(
                    f"- {text}"
                    for text in (*alarms(detection), *by_job(detection), *unlike(report.unlike))
                )
            ),
            "checkpoint_bytes": report.checkpoint_bytes,
            "processor": report.latency and report.latency.processor,
            "latency_median_ms": report.latency and report.latency.median_ms,
            "latency_p99_ms": report.latency and report.latency.p99_ms,
            "importance": report.importance.model_dump() if report.importance else None,
            "operating_curve": detection.operating_curve.model_dump(),
            "test_windows": report.n_windows,
            "test_episodes": report.n_episodes,
            "checkpoint_id": report.checkpoint_id,
            "confusion": Markdown(f"![confusion](data:image/png;base64,{encoded})"),
            "warnings": Markdown("\n".join(f"- {sentence(w)}" for w in report.warnings) or "none"),
            "model_card": Markdown(body_of(artifact.path("card").read_text(encoding="utf-8"))),
            "card": artifact.place("card"),
            "report": artifact.place("report"),
            **{f"f1_{row.name}": row.f1.value for row in report.per_class},
            **{f"baseline_{row.name}": row.macro_f1.value for row in report.baselines},
        }
        return {name: value for name, value in figures.items() if value is not None}

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        figure = read_report(artifacts[self.name]).macro_f1
        interval = f" ({span(figure)})" if span(figure) else ""
        return f"macro F1 {number(figure.value)}{interval}"


class ComparisonsStage(FolderStage):
    """Which model is better than which, paired on the same resampled test episodes."""

    name = "comparisons"
    version = "8"
    partition = "recipe"
    job = "retrain"
    docs = "evaluation.md"

    inputs = ("held_out_predictions",)

    outputs = (
        StageOutput(
            name,
            "Which model is better than which, paired on the same resampled test episodes.",
            group="evaluate",
            kinds=frozenset({"json"}),
        ),
    )

    def folder(self, workspace: Workspace, key: str) -> Path:
        return workspace.report_page.parent / key / self.name

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint(
            {
                "stage": self.version,
                "predictions": project.existing("held_out_predictions", key).version,
                "policy": asdict(project.workspace.report),
            }
        )

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
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
        staged.new_file("comparisons", ".json").write_text(
            document_text(document), encoding="utf-8"
        )
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


def measure_latency(project: Project, recipe: str, variant: Variant) -> Latency:
    """How long a checkpoint takes for a window, on test windows from all over the recipe."""
    dataset = project.existing("datasets", recipe)
    test = read_dataset(dataset).filter(pl.col("split") == "test")
    drawn = test[np.unique(np.linspace(0, len(test) - 1, CALLS).astype(int))]
    X = inputs(drawn, dataset_shards(project, dataset), variant, project.workspace.layout)
    model = project.checkpoint(variant, recipe).model
    with model.one_thread():
        return measure(model.predict_proba, np.asarray(X[:], dtype=np.float32))


def read_report(manifest: Manifest) -> EvalReport:
    """An evaluation report as written, with the latency that was measured beside it.

    Raises:
        ValueError: it has another form.
    """
    report = EvalReport.model_validate_json(manifest.path("report").read_bytes())
    latency = Latency.model_validate(manifest.facts.get("latency"))
    return report.model_copy(update={"latency": latency})


def read_comparisons(manifest: Manifest) -> documents.Comparisons:
    """The comparisons of a recipe as written.

    Raises:
        ValueError: they have another form.
    """
    return documents.Comparisons.model_validate_json(manifest.path("comparisons").read_bytes())
