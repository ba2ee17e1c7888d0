"""Inference: score a batch's episodes with a checkpoint that fits the live layout."""

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

from assets.partitions import BATCHES, OWNERS
from evaluation.datasets import RECIPES, inputs, read_dataset
from features.manifest import draft, fingerprint, read_manifest, reusable
from features.shards import read_windows, write_table
from models.champion import SERVED
from models.checkpoint import Checkpoint
from models.registry import find_variant
from resources.guards import (
    refuse,
    refuse_throwaway_instance,
    require_batches,
    require_champion,
    require_checkpoint,
)
from resources.promotion import read_training
from resources.reporting import Stopwatch, artefact_metadata, layout_metadata, say
from resources.workspace import Workspace

PREDICTIONS_VERSION = "1"


class ScoreConfig(dg.Config):
    """Which checkpoint scores; as it stands, the champion's."""

    model: str = Field(default="", description="A model of the registry; empty: the champion.")
    mode: str = Field(default="realistic", description="Of a named model: realistic or oracle.")
    recipe: str = Field(
        default=SERVED, description="Of a named model: whose checkpoint, host, sample or time."
    )


@dg.asset(
    partitions_def=BATCHES,
    deps=["tensor_shards", "feature_shards", "champion"],
    group_name="score",
    kinds={"parquet"},
    owners=OWNERS,
    code_version=PREDICTIONS_VERSION,
)
def predictions(
    context: dg.AssetExecutionContext, config: ScoreConfig, workspace: Workspace
) -> dg.MaterializeResult:
    """Phase probabilities of every window of a batch; episodes seen in training are marked.

    Refuses, with the difference, where the live input contract is not the checkpoint's.
    """
    refuse_throwaway_instance(context.instance)
    watch = Stopwatch()
    batch = context.partition_key
    checkpoint, recipe, training = _chosen(context.instance, config, workspace)
    which = checkpoint.variant
    shards = require_batches(workspace, [batch])
    identity = fingerprint(
        {
            "stage": PREDICTIONS_VERSION,
            "checkpoint": checkpoint.artifact_id,
            "shards": {stage: m.version for stage, m in shards[batch].items()},
        }
    )
    folder = workspace.predictions_folder(batch, recipe, which)
    manifest = None if workspace.force else reusable(folder, identity)
    reused = manifest is not None
    if manifest is None:
        windows = pl.from_arrow(read_windows(shards[batch]["tensor_shards"]))
        assert isinstance(windows, pl.DataFrame)
        windows = windows.with_columns(batch=pl.lit(batch))
        classes = np.array(workspace.layout.phases)
        proba = checkpoint.model.predict_proba(inputs(windows, shards, which, workspace.layout))
        table = windows.select(
            "episode_id",
            "host_id",
            "window",
            "start_s",
            pl.col("label").alias("labelled"),
            pl.Series("predicted", classes[proba.argmax(axis=1)] if len(proba) else []).cast(
                pl.String
            ),
            *(pl.Series(f"p_{phase}", proba[:, i]) for i, phase in enumerate(classes)),
            pl.col("episode_id").is_in(training.implode()).alias("seen_in_training"),
            pl.lit(checkpoint.artifact_id).alias("checkpoint_id"),
        )
        with draft(folder) as staged:
            write_table(table.to_arrow(), staged.new_file("predictions", ".parquet"))
            counts = dict(sorted(table["predicted"].value_counts().iter_rows()))
            facts = {
                "windows": len(table),
                "predicted": counts,
                "seen_in_training": int(table["seen_in_training"].sum()),
            }
            manifest = staged.commit(identity, facts)
    say(
        context,
        f"score {batch} with {which.name} ({recipe}): "
        f"{manifest.facts['windows']} windows in {manifest.path('predictions')}"
        + (", reused" if reused else ""),
    )
    return dg.MaterializeResult(
        metadata={
            **artefact_metadata(manifest, workspace.layout, reused=reused, watch=watch),
            "checkpoint": f"{which.name} ({recipe})",
            "checkpoint_id": checkpoint.artifact_id,
            "dagster/partition_row_count": manifest.facts["windows"],
            "windows_seen_in_training": manifest.facts["seen_in_training"],
            "predicted": dg.MetadataValue.json(manifest.facts["predicted"]),
            **layout_metadata(workspace.layout, which.spec.input_kind),
        },
        data_version=dg.DataVersion(manifest.version),
    )


def _chosen(
    instance: dg.DagsterInstance, config: ScoreConfig, workspace: Workspace
) -> tuple[Checkpoint, str, pl.Series]:
    """The checkpoint that scores, its recipe, and the episodes it was trained or validated on."""
    if not config.model:
        if (config.mode, config.recipe) != ("realistic", SERVED):
            refuse("mode and recipe choose a checkpoint of a named model: name the model as well.")
        reign, checkpoint = require_champion(workspace)
        return checkpoint, reign.served, read_training(workspace, reign, reign.served)["episode_id"]
    try:
        which = find_variant(config.model, config.mode)
    except ValueError as error:
        refuse(str(error))
    if config.recipe not in RECIPES:
        refuse(f"No recipe {config.recipe!r}; there is {', '.join(RECIPES)}.")
    checkpoint = require_checkpoint(instance, workspace, config.recipe, which)
    dataset = read_manifest(workspace.dataset_folder(config.recipe))
    if dataset is None or dataset.version != checkpoint.header["train_meta"]["dataset_version"]:
        refuse(
            f"Dataset {config.recipe} is not the version the checkpoint was trained on, so "
            "episodes seen in training cannot be marked. Retrain: "
            f"phasewatch run --recipe {config.recipe}"
        )
    table = read_dataset(dataset).filter(pl.col("split") != "test")
    return checkpoint, config.recipe, table["episode_id"].unique().sort()
