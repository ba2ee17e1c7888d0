"""Likeness: per recipe and mode, how far an episode may be from training and still be like it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from champion.history import load_likeness, read_history
from datasets.splits import RECIPES
from datasets.windows import inputs_of_kind, read_dataset
from evaluation.likeness import EpisodeLikeness
from features.contract import contract_of
from features.files import fingerprint
from features.shards import read_table, write_table
from models.likeness import (
    ALPHA,
    Likeness,
    calibrate,
    fit_training_space,
    highest_per_episode,
    p_values,
)
from stages.datasets import dataset_shards
from stages.stage import Artifacts, FolderStage, Progress, StageOutput
from stages.status import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from features.registry import Layout, Mode
    from models.checkpoint import Checkpoint
    from stages.manifest import Draft, Manifest
    from stages.project import Project

_EPISODE = ("episode_id", "host_id", "session", "profile")


class LikenessStage(FolderStage):
    """How far windows are from training, in one mode, calibrated on validation episodes."""

    version = "1"
    partition = "recipe"
    job = "retrain"
    docs = "evaluation.md"

    inputs = ("datasets",)

    def __init__(self, mode: Mode):
        self.mode = mode
        self.name = f"likeness/{mode}"
        description = (
            f"How far windows are from training ({mode}), calibrated on validation episodes: an "
            f"episode like these is called unlike training with probability {ALPHA:g} at most."
        )
        kinds = frozenset({"parquet"})
        self.outputs = (StageOutput(self.name, description, "evaluate", kinds, "summary"),)

    def fingerprint(self, project: Project, key: str) -> str:
        workspace = project.workspace
        return fingerprint(
            {
                "stage": self.version,
                "dataset": project.existing("datasets", key).version,
                "contract": contract_of(workspace.layout, "summary").hash,
                "seed": workspace.seed,
            }
        )

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
        dataset = project.artifact("datasets", key)
        if dataset is None or manifest.facts["dataset_version"] != dataset.version:
            return Reason("inputs", {"inputs": ["datasets"]})
        try:
            fitted = read_likeness(manifest)
        except ValueError:
            return Reason("format")
        if fitted.contract_hash != contract_of(project.workspace.layout, "summary").hash:
            return Reason("inputs", {"inputs": ["the input layout"]})
        return Reason("settings")

    def write(
        self, project: Project, key: str, staged: Draft, progress: Progress
    ) -> dict[str, Any]:
        workspace, dataset = project.workspace, project.existing("datasets", key)
        layout = workspace.layout
        shards, table = dataset_shards(project, dataset), read_dataset(dataset)
        likeness, test = fit_likeness(table, shards, self.mode, layout, workspace.seed)
        staged.new_file("likeness", ".safetensors").write_bytes(likeness.to_bytes())
        write_table(test.to_arrow(), staged.new_file("episodes", ".parquet"))
        return {
            "recipe": key,
            "dataset_version": dataset.version,
            "likeness_id": likeness.id,
            "alpha": ALPHA,
            "calibration_episodes": len(likeness.calibration),
            "test_episodes": len(test),
            "test_episodes_unlike": int((test["p"] <= ALPHA).sum()),
        }

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        facts = artifact.facts
        return {
            **{name: value for name, value in facts.items() if name != "recipe"},
            "least_p": 1 / (facts["calibration_episodes"] + 1),
            "test_share_unlike": facts["test_episodes_unlike"] / max(1, facts["test_episodes"]),
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        facts = artifacts[self.name].facts
        return f"{facts['test_episodes_unlike']} of {facts['test_episodes']} test episodes unlike"


def fit_likeness(
    table: pl.DataFrame,
    shards: Mapping[str, Any],
    mode: Mode,
    layout: Layout,
    seed: int,
) -> tuple[Likeness, pl.DataFrame]:
    """The likeness of a dataset, and its test episodes with score and p value.

    Args:
        table: windows with ``split``: train, val (which calibrates) and test.
    """
    sides = {
        split: table.filter(pl.col("split") == split).sort("episode_id", "window")
        for split in ("train", "val", "test")
    }
    X = {
        split: inputs_of_kind(side, shards, "summary", mode, layout)
        for split, side in sides.items()
    }
    first = {split: episode_starts(side) for split, side in sides.items()}
    space = fit_training_space(X["train"], seed)
    contract = contract_of(layout, "summary").hash
    likeness = calibrate(space, X["val"], first["val"], mode, contract)
    score = highest_per_episode(likeness.scores(X["test"], first["test"]), first["test"])
    test = sides["test"].filter(pl.Series(first["test"])).select(_EPISODE)
    p = p_values(score, likeness.calibration)
    return likeness, test.with_columns(score=pl.Series(score), p=pl.Series(p))


def episode_starts(windows: pl.DataFrame) -> NDArray[np.bool_]:
    """Where an episode begins ``(n_windows,)``."""
    before = windows["episode_id"].shift(1)
    return (windows["episode_id"] != before).fill_null(True).to_numpy()


def read_likeness(manifest: Manifest) -> Likeness:
    """A likeness as written.

    Raises:
        ValueError: it has another form.
    """
    return Likeness.from_bytes(manifest.path("likeness").read_bytes())


def likeness_of(project: Project, checkpoint: Checkpoint) -> Likeness | None:
    """The likeness of what a checkpoint was trained on, or kept with it; None if there is none.

    Raises:
        StageError: the likeness was changed after it was written, or has another form.
        ChampionError: the same of one that is kept with a champion.
    """
    layout, made_from = project.workspace.layout, checkpoint.header["train_meta"]
    name, recipe = f"likeness/{checkpoint.variant.mode}", made_from.get("recipe")
    manifest = project.artifact(name, recipe) if recipe in RECIPES else None
    if manifest is None and recipe in RECIPES:
        project.refuse_unreadable(name, recipe)
    if manifest and manifest.facts.get("dataset_version") == made_from.get("dataset_version"):
        try:
            if problem := project.refusal(manifest):
                raise ValueError(problem)
            likeness = read_likeness(manifest)
        except ValueError as error:
            raise StageError(f"{error}. Run: {project.stages[name].remedy(recipe)}") from error
        if likeness.contract_hash == contract_of(layout, "summary").hash:
            return likeness
    folder = project.workspace.champion_folder
    for champion in reversed(read_history(folder)):
        if champion.likeness and champion.checkpoints[champion.served] == checkpoint.artifact_id:
            return load_likeness(folder, champion, layout)
    return None


def likeness_of_test(manifest: Manifest) -> EpisodeLikeness:
    """Of the test episodes."""
    episodes = pl.DataFrame(read_table(manifest.path("episodes")))
    return EpisodeLikeness(
        manifest.facts["likeness_id"],
        manifest.facts["alpha"],
        manifest.facts["calibration_episodes"],
        dict(zip(episodes["episode_id"], episodes["p"], strict=True)),
    )
