"""Predictions: a batch's windows scored with the champion, or with a checkpoint that is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from champion.history import SERVED_RECIPE, ChampionError, read_champion
from config.messages import unknown
from datasets.splits import RECIPES
from datasets.windows import inputs, inputs_of_kind
from episodes.format import SOURCES
from features.contract import contract_hashes
from features.files import fingerprint
from features.shards import write_table
from models.registry import find_variant
from stages.datasets import batch_windows
from stages.likeness import episode_starts
from stages.scoring import (
    Scorer,
    apply_likeness,
    apply_rule,
    champion_scorer,
    scored_columns,
    unlike_columns,
)
from stages.stage import Artifacts, Check, CheckResult, FolderStage, Progress, Stage, StageOutput
from stages.status import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from stages.manifest import Draft, Manifest
    from stages.project import Project
    from stages.workspace import Workspace


@dataclass(frozen=True)
class ScoreOptions:
    """Which checkpoint scores; by default the champion's."""

    model: str = ""  # a model of the registry; empty: the champion
    mode: str = "realistic"  # of a named model: realistic or oracle
    recipe: str = SERVED_RECIPE  # of a named model: host, sample, time or session


def _sources_covered(project: Project, key: str, artifact: Manifest) -> CheckResult:
    """Of the sources that the scoring model sees."""
    coverage = artifact.facts.get("coverage", {})
    absent = sorted(source for source, share in coverage.items() if share == 0)
    return CheckResult(not absent, "warn", facts={"coverage": coverage, "absent_sources": absent})


def _scored_under_the_live_contract(project: Project, key: str, artifact: Manifest) -> CheckResult:
    live = contract_hashes(project.workspace.layout)
    scored = artifact.facts.get("contract_hash")
    return CheckResult(
        scored in live.values(), "warn", facts={"contract_hash": scored, "live": dict(live)}
    )


class PredictionsStage(FolderStage):
    """Phase probabilities of every window of a batch; episodes seen in training are marked."""

    name = "predictions"
    version = "4"
    partition = "batch"
    job = "score"
    automatic = False
    options = ScoreOptions
    docs = "champion.md"

    inputs = ("ingest", "champion")

    outputs = (
        StageOutput(
            name,
            "Phase probabilities of every window of a batch; episodes seen in training are "
            "marked. Fails with the contract diff if the checkpoint is for another layout.",
            group="score",
            kinds=frozenset({"parquet"}),
        ),
    )

    checks = (
        Check(
            "sources_covered",
            name,
            "Every source that the model sees has values in the batch's windows.",
            _sources_covered,
        ),
        Check(
            "scored_under_the_live_contract",
            name,
            "The checkpoint that scored was trained for the current input layout.",
            _scored_under_the_live_contract,
        ),
    )

    def __init__(self, chosen: ScoreOptions | None = None):
        self.chosen = chosen or ScoreOptions()

    def with_options(self, options: Any, why: str) -> PredictionsStage:
        return PredictionsStage(options)

    def needs(self, project: Project, key: str) -> Iterator[tuple[Stage, str]]:
        yield project.stages["ingest"], key
        if self.chosen.model:
            yield project.stages[f"checkpoints/{self._variant.name}"], self._recipe
            yield project.stages[f"alarm_rules/{self._variant.name}"], self._recipe
            yield project.stages[f"likeness/{self._variant.mode}"], self._recipe

    @property
    def _variant(self) -> Any:
        try:
            return find_variant(self.chosen.model, self.chosen.mode)
        except ValueError as error:
            raise StageError(str(error)) from error

    @property
    def _recipe(self) -> str:
        if self.chosen.recipe not in RECIPES:
            raise StageError(unknown("recipe", self.chosen.recipe, RECIPES))
        return self.chosen.recipe

    def scorer(self, project: Project) -> Scorer:
        """What scores.

        Raises:
            StageError: there is no champion, or a name is unknown.
            ChampionError, CheckpointError: the champion cannot be read or loaded.
        """
        if self.chosen.model:
            return Scorer(project, project.checkpoint(self._variant, self._recipe))
        if self.chosen != ScoreOptions():
            raise StageError("mode and recipe need a model: set model as well.")
        return champion_scorer(
            project,
            "in the run configuration, ops: predictions: config: {model: gbt, recipe: host}",
        )

    def folder(self, workspace: Workspace, key: str) -> Path:
        champion = None if self.chosen.model else read_champion(workspace.champion_folder)
        variant = find_variant(champion.model, champion.mode) if champion else self._variant
        recipe = champion.served if champion else self._recipe
        return workspace.predictions_folder(key, recipe, variant)

    def read(self, project: Project, key: str) -> Artifacts:
        try:
            return super().read(project, key)
        except (StageError, ChampionError):
            return {self.name: None}

    def fingerprint(self, project: Project, key: str) -> str:
        checkpoint_id, rule_id, likeness_id = self._scored_by(project)
        shards = project.artifacts("ingest", key)
        if None in shards.values():
            raise StageError.of([project.status(project.stages["ingest"], key)])
        return fingerprint(
            {
                "stage": self.version,
                "checkpoint": checkpoint_id,
                "alarm_rule": rule_id,
                "likeness": likeness_id,
                "shards": {name: manifest.version for name, manifest in shards.items()},
            }
        )

    def _scored_by(self, project: Project) -> tuple[str, str, str | None]:
        """Ids of the checkpoint, its alarm rule and its likeness.

        A champion's are in its history: no model is loaded to see whether batches are scored.
        """
        folder = project.workspace.champion_folder
        champion = read_champion(folder) if self.chosen == ScoreOptions() else None
        if champion is not None and champion.served in champion.alarm_rules:
            served = champion.served
            rule_id, likeness_id = champion.alarm_rules[served], champion.likeness or None
            return champion.checkpoints[served], rule_id, likeness_id
        scorer = self.scorer(project)
        likeness_id = scorer.likeness.id if scorer.likeness else None
        return scorer.checkpoint.artifact_id, scorer.required_rule().id, likeness_id

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
        if "alarm_rule_id" not in manifest.facts:  # written by an earlier version
            return Reason("format")
        return super().stale_reason(project, key, manifest)

    def remedy(self, key: str) -> str:
        tags = f'{{"dagster/partition": "{key}"}}'
        return f"dagster job execute -m pipelines.definitions -j score --tags '{tags}'"

    def write(
        self,
        project: Project,
        key: str,
        staged: Draft,
        progress: Progress,
    ) -> dict[str, Any]:
        layout, shards = project.workspace.layout, project.artifacts("ingest", key)
        scorer = self.scorer(project)
        checkpoint, rule, likeness = scorer.checkpoint, scorer.required_rule(), scorer.likeness
        training = scorer.training
        assert training is not None, "its dataset was checked: it is an input of what scores"
        windows = batch_windows(key, shards)
        X = inputs(windows, {key: shards}, checkpoint.variant, layout)
        proba = checkpoint.model.predict_proba(X)
        first = episode_starts(windows)
        rule_scores, unlike = apply_rule(rule, proba, first), None
        if likeness:
            seen = inputs_of_kind(windows, {key: shards}, "summary", likeness.mode, layout)
            unlike = apply_likeness(likeness, seen, first)
        table = windows.select(
            "episode_id",
            "host_id",
            "window",
            "start_s",
            pl.col("label").alias("labelled"),
            *scored_columns(layout.phases, proba, rule_scores),
            *unlike_columns(unlike, len(windows)),
            pl.col("episode_id").is_in(training["episode_id"].implode()).alias("seen_in_training"),
            pl.lit(checkpoint.artifact_id).alias("checkpoint_id"),
            pl.lit(rule.id).alias("alarm_rule_id"),
        )
        write_table(table.to_arrow(), staged.new_file("predictions", ".parquet"))
        return {
            "windows": len(table),
            "predicted": dict(sorted(table["predicted"].value_counts().iter_rows())),
            "filtered": dict(sorted(table["filtered"].value_counts().iter_rows())),
            "windows_alarmed": int(table["alarm"].sum()),
            "alarm_rule_id": rule.id,
            "likeness_id": likeness.id if likeness else None,
            "episodes_unlike": (
                table.filter("unlike")["episode_id"].n_unique() if likeness else None
            ),
            "seen_in_training": int(table["seen_in_training"].sum()),
            "checkpoint": f"{checkpoint.variant.name} ({scorer.recipe})",
            "checkpoint_id": checkpoint.artifact_id,
            "contract_hash": checkpoint.header["contract_hash"],
            "coverage": {
                source.name: round(float(windows[f"coverage_{source.name}"].to_numpy().mean()), 4)
                for source in SOURCES.values()
                if len(windows) and (source.deployable or checkpoint.variant.mode == "oracle")
            },
        }

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        facts = artifact.facts
        return {
            "checkpoint": facts.get("checkpoint"),
            "checkpoint_id": facts.get("checkpoint_id"),
            "dagster/partition_row_count": facts["windows"],
            "windows_seen_in_training": facts["seen_in_training"],
            "predicted": facts["predicted"],
            "filtered": facts["filtered"],
            "windows_alarmed": facts["windows_alarmed"],
            "alarm_rule_id": facts["alarm_rule_id"],
            "likeness_id": facts["likeness_id"],
            "episodes_unlike": facts["episodes_unlike"],
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        manifest = artifacts[self.name]
        return f"{manifest.facts['windows']} windows in {manifest.place('predictions')}"
