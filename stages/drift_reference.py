"""What drift compares batches with: kept beside the champion's checkpoint, sealed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from champion.history import (
    REFERENCE_FILE,
    ChampionEntry,
    checkpoint_copy_path,
    load_checkpoint_copy,
    read_training,
)
from config.messages import shortened
from config.signing import sealed, unsealed
from datasets.windows import inputs, read_channel_means
from evaluation.documents import DriftReference
from evaluation.drift import build_reference, draw_episodes
from evaluation.scores import phases_of
from features.files import write_atomically
from features.shards import read_table
from models.checkpoint import Checkpoint
from stages.batch import FEATURES, INDEX
from stages.datasets import batch_windows
from stages.status import StageError

if TYPE_CHECKING:
    from stages.project import Project

log = logging.getLogger("phasewatch")

REFERENCE_FIELDS = {field.alias or name for name, field in DriftReference.model_fields.items()}


def drift_reference(project: Project, champion: ChampionEntry) -> DriftReference:
    """What drift compares batches with: kept with the champion, made again if it was lost.

    Raises:
        ChampionError, StageError: it was lost, and so was what it is made from.
    """
    kept = read_reference_copy(project, champion)
    if kept is not None:
        return kept
    log.warning("%s: lost or damaged; it is being rebuilt", reference_path(project, champion))
    windows = training_windows(project, champion)
    workspace = project.workspace
    checkpoint = load_checkpoint_copy(workspace.champion_folder, champion, workspace.layout)
    shards = {batch: project.artifacts("ingest", batch) for batch in windows["batch"].unique()}
    made = new_reference(project, checkpoint, windows, shards)
    write_atomically(reference_path(project, champion), reference_text(made))
    return made


def reference_path(project: Project, champion: ChampionEntry) -> Path:
    return checkpoint_copy_path(project.workspace.champion_folder, champion).with_name(
        REFERENCE_FILE
    )


def reference_text(value: DriftReference) -> bytes:
    return sealed(value.model_dump(), "reference", indent=None)


def read_reference_copy(project: Project, champion: ChampionEntry) -> DriftReference | None:
    try:
        content = reference_path(project, champion).read_bytes()
        return DriftReference.model_validate(unsealed(content, REFERENCE_FIELDS).value)
    except (OSError, ValueError):
        return None


def training_windows(project: Project, champion: ChampionEntry) -> pl.DataFrame:
    """The windows that a champion was trained and validated on, from the shards as they are.

    Raises:
        ChampionError: the list of its episodes is gone.
        StageError: not all of these episodes are ingested.
    """
    training = read_training(project.workspace.champion_folder, champion)
    ingest = project.stages["ingest"]
    batches = [s.key for s in project.statuses(ingest, verify=True) if s.usable]
    windows = pl.concat(
        batch_windows(batch, project.artifacts("ingest", batch)) for batch in batches
    ) if batches else pl.DataFrame(schema={"episode_id": pl.String})  # fmt: skip
    lost = sorted(set(training["episode_id"]) - set(windows["episode_id"]))
    if lost:
        raise StageError(
            f"{reference_path(project, champion)}: lost, and cannot be rebuilt: {len(lost)} of "
            f"the {len(training)} episodes it is made from are not ingested "
            f"({shortened(lost, ', ', 3)})"
        )
    return windows.join(training.select("episode_id", "split"), on="episode_id")


def new_reference(
    project: Project, checkpoint: Checkpoint, table: pl.DataFrame, shards: Mapping[str, Any]
) -> DriftReference:
    layout, seed = project.workspace.layout, project.workspace.seed
    variant = checkpoint.variant
    shards = {batch: shards[batch] for batch in sorted(table["batch"].unique())}
    visible = layout.channels_of(variant.mode)
    channels = [name for name, kept in zip(layout.channel_names, visible, strict=True) if kept]
    train, val = (
        draw_episodes(table.filter(pl.col("split") == split), seed) for split in ("train", "val")
    )
    proba = checkpoint.model.predict_proba(inputs(val, shards, variant, layout))
    verdicts = pl.concat(
        pl.DataFrame(read_table(files[INDEX].path("index"), ["host_id", "verdict"]))
        for files in shards.values()
    )
    features = pl.concat(
        read_channel_means(files[FEATURES], channels, layout).filter(
            pl.col("episode_id").is_in(train["episode_id"].implode())
        )
        for files in shards.values()
    )
    predicted = val.with_columns(predicted=pl.Series(phases_of(proba, layout.phases)))
    return build_reference(features, predicted, verdicts, channels, seed)
