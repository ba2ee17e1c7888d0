"""Alarm rules: per checkpoint the filter and the threshold, chosen on validation.

A rule is bound to its checkpoint's id. Another budget makes new rules and retrains nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from champion.history import load_alarm_rule, read_history
from datasets.splits import RECIPES
from datasets.windows import inputs, read_dataset
from evaluation.alarm_choice import choose_rule, filtered_alarm_scores, filtered_predictions
from evaluation.documents import FigureNote
from evaluation.scores import prediction_rows, split_predictions
from features.files import fingerprint
from models.alarm import AlarmRule
from stages.datasets import dataset_shards
from stages.stage import Artifacts, FactTable, FolderStage, Progress, StageOutput
from stages.status import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from models.checkpoint import Checkpoint
    from models.registry import Variant
    from stages.manifest import Draft, Manifest
    from stages.project import Project


class AlarmRulesStage(FolderStage):
    """Chooses the alarm rule of one variant's checkpoint."""

    version = "2"
    partition = "recipe"
    job = "retrain"
    docs = "evaluation.md"

    def __init__(self, variant: Variant):
        self.variant = variant
        self.name = f"alarm_rules/{variant.name}"
        self.inputs = ("datasets", f"checkpoints/{variant.name}")
        description = (
            f"When {variant.model} ({variant.mode}) raises the alarm: temperature, filter over "
            "time, threshold and clear ratio, chosen on validation within the alarm budget."
        )
        self.outputs = (
            StageOutput(
                self.name, description, "evaluate", frozenset({"json"}), variant.spec.input_kind
            ),
        )

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint(
            {
                "stage": self.version,
                "checkpoint": project.existing(f"checkpoints/{self.variant.name}", key).version,
                "dataset": project.existing("datasets", key).version,
                "policy": asdict(project.workspace.report),
            }
        )

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
        checkpoint = project.artifact(f"checkpoints/{self.variant.name}", key)
        dataset = project.artifact("datasets", key)
        made_from = [manifest.facts[name] for name in ("checkpoint_id", "dataset_version")]
        same = checkpoint and dataset and made_from == [checkpoint.version, dataset.version]
        return Reason("settings") if same else Reason("inputs", {"inputs": list(self.inputs)})

    def write(
        self, project: Project, key: str, staged: Draft, progress: Progress
    ) -> dict[str, Any]:
        workspace, dataset = project.workspace, project.existing("datasets", key)
        layout, table = workspace.layout, read_dataset(dataset)
        checkpoint = project.checkpoint(self.variant, key)
        windows = table.filter(pl.col("split") == "val")
        X = inputs(windows, dataset_shards(project, dataset), self.variant, layout)
        who = (self.variant.model, self.variant.mode)
        rows = prediction_rows(
            windows, *who, checkpoint.artifact_id, checkpoint.model.predict_proba(X), layout.phases
        )
        val = split_predictions(rows, *who, layout.phases, "val")
        training = training_phases(table, layout.phases)
        rule, note = choose_rule(val, training, layout.phases, workspace.report, layout.window)
        staged.new_file("rule", ".json").write_text(rule.text(), encoding="utf-8")
        scores = filtered_alarm_scores(filtered_predictions(val, rule), rule, layout.window)
        return {
            "recipe": key,
            "checkpoint_id": rule.checkpoint_id,
            "dataset_version": dataset.version,
            "alarm_rule_id": rule.id,
            "threshold_note": note.model_dump() if note else None,
            "clean_hours": float(scores.clean_hours.sum()),
            "false_alarms": int(scores.false_alarms(rule.threshold).sum()),
        }

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        rule = read_alarm_rule(artifact)
        return {
            "alarm_rule_id": rule.id,
            "checkpoint_id": rule.checkpoint_id,
            "temperature": rule.temperature,
            "threshold": rule.threshold,
            "clear_below": rule.clear_below,
            "val_clean_hours": artifact.facts["clean_hours"],
            "val_false_alarms": artifact.facts["false_alarms"],
            "transitions": FactTable(
                [
                    {
                        "from": before,
                        **{
                            after: round(share, 4)
                            for after, share in zip(rule.phases, row, strict=True)
                        },
                    }
                    for before, row in zip(rule.phases, rule.transitions, strict=True)
                ]
            ),
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        rule = read_alarm_rule(artifacts[self.name])
        return f"threshold {rule.threshold:.3f}, cleared below {rule.clear_below:.3f}"


def training_phases(table: pl.DataFrame, phases: Sequence[str]) -> list[list[int]]:
    """Per training episode the classes of its consecutive windows."""
    code = {phase: i for i, phase in enumerate(phases)}
    train = table.filter(pl.col("split") == "train").sort("episode_id", "window")
    grouped = train.group_by("episode_id", maintain_order=True).agg("label")
    return [[code[label] for label in labels] for labels in grouped["label"].to_list()]


def read_alarm_rule(manifest: Manifest) -> AlarmRule:
    """A rule as written.

    Raises:
        ValueError: it has another form.
    """
    return AlarmRule.from_text(manifest.path("rule").read_bytes())


def alarm_rule_of(project: Project, checkpoint: Checkpoint) -> AlarmRule | None:
    """The rule that was chosen for a checkpoint, or kept with it; None if there is none.

    It is bound to the checkpoint's id, so it does not matter where the checkpoint was read from.

    Raises:
        StageError: the rule was changed after it was written.
        ChampionError: the same of a rule that is kept with a champion.
    """
    name = f"alarm_rules/{checkpoint.variant.name}"
    for recipe in RECIPES:
        manifest = project.artifact(name, recipe)
        if manifest is None and recipe == checkpoint.header["train_meta"].get("recipe"):
            project.refuse_unreadable(name, recipe)
        if manifest is None or manifest.facts.get("checkpoint_id") != checkpoint.artifact_id:
            continue
        if problem := project.refusal(manifest):
            raise StageError(f"{problem}. Run: {project.stages[name].remedy(recipe)}")
        return read_alarm_rule(manifest)
    folder = project.workspace.champion_folder
    for champion in reversed(read_history(folder)):
        for recipe, checkpoint_id in champion.checkpoints.items():
            if checkpoint_id == checkpoint.artifact_id and recipe in champion.alarm_rules:
                return load_alarm_rule(folder, champion, recipe)
    return None


def threshold_note(manifest: Manifest) -> FigureNote | None:
    """What must be known of the rule's threshold."""
    note = manifest.facts["threshold_note"]
    return FigureNote(**note) if note else None
