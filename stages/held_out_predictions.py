"""Held-out predictions: every checkpoint's probabilities for the windows of val and test."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl

from datasets.windows import inputs, read_dataset, read_once
from evaluation.baselines import shortcut_predictions
from evaluation.scores import ABLATION_SEPARATOR, prediction_rows
from features.files import fingerprint
from features.registry import MODES
from features.shards import read_table, write_parts
from models.registry import VARIANTS
from stages.datasets import dataset_shards
from stages.stage import FolderStage, Progress, StageOutput
from stages.status import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from models.checkpoint import Checkpoint
    from stages.manifest import Draft, Manifest
    from stages.project import Project


class HeldOutPredictionsStage(FolderStage):
    """Every checkpoint's probabilities for the windows of val and test, and the baselines'."""

    name = "held_out_predictions"
    version = "5"
    partition = "recipe"
    job = "retrain"
    docs = "evaluation.md"

    inputs = ("datasets", *(f"checkpoints/{variant.name}" for variant in VARIANTS))

    outputs = (
        StageOutput(
            name,
            "Probabilities of every checkpoint and baseline for the windows of val and test.",
            group="evaluate",
            kinds=frozenset({"parquet"}),
        ),
    )

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint(
            {
                "stage": self.version,
                "dataset": project.existing("datasets", key).version,
                "checkpoints": checkpoint_ids(project, key),
                "seed": project.workspace.seed,
            }
        )

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
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

        def parts() -> Iterator[pa.Table]:
            for done, variant in enumerate(VARIANTS):
                progress(done, len(VARIANTS), variant.name)
                X = read_once(inputs(held_out, shards, variant, layout))
                checkpoint = project.checkpoint(variant, key)
                yield checkpoint_predictions(held_out, checkpoint, X, layout.phases).to_arrow()
            seed = project.workspace.seed
            yield shortcut_predictions(table, layout.phases, MODES, seed).to_arrow()

        write_parts(parts(), staged.new_file("predictions", ".parquet"))
        return {
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
        f"{name}{ABLATION_SEPARATOR}{part}": proba
        for part, proba in checkpoint.model.ablations(X).items()
    }
    return pl.concat(
        prediction_rows(windows, known_as, mode, checkpoint.artifact_id, proba, classes)
        for known_as, proba in predicted.items()
    )


def read_predictions(manifest: Manifest) -> pl.DataFrame:
    """The table of held-out predictions."""
    return pl.DataFrame(read_table(manifest.path("predictions")))
