"""Datasets: per recipe, which windows train, validate and test."""

from dataclasses import asdict

import dagster as dg
import polars as pl

from assets.partitions import EVERY_PARTITION, OWNERS, RECIPE_PARTITIONS
from evaluation.datasets import SPLITS, DatasetError, build_table, read_dataset
from features.ingest import STAGES
from features.manifest import Manifest, draft, fingerprint, reusable
from features.shards import read_windows, write_table
from resources.guards import (
    refuse,
    refuse_throwaway_instance,
    require_batches,
)
from resources.reporting import Stopwatch, artefact_metadata, layout_metadata, say
from resources.workspace import Workspace

DATASET_VERSION = "1"
Versions = dict[str, dict[str, str]]  # batch -> stage -> data version


@dg.asset(
    partitions_def=RECIPE_PARTITIONS,
    deps=[dg.AssetDep(stage, partition_mapping=EVERY_PARTITION) for stage in STAGES],
    check_specs=[
        dg.AssetCheckSpec(
            "splits_disjoint",
            asset="datasets",
            description="No episode, held-out host or sample, or span of time is on two sides.",
            blocking=True,
            partitions_def=RECIPE_PARTITIONS,
        ),
        dg.AssetCheckSpec(
            "every_episode_ingested",
            asset="datasets",
            description="No batch gained episodes since it was ingested; the dataset lacks them.",
            partitions_def=RECIPE_PARTITIONS,
        ),
    ],
    group_name="train",
    kinds={"parquet"},
    owners=OWNERS,
    code_version=DATASET_VERSION,
)
def datasets(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    """Windows of all batches with their split: a table over the shards, never a copy of data."""
    refuse_throwaway_instance(context.instance)
    watch = Stopwatch()
    recipe = context.partition_key
    shards = require_batches(workspace, verify=True)
    versions = {b: {s: m.version for s, m in found.items()} for b, found in shards.items()}
    policy = workspace.split_policy
    identity = dataset_identity(workspace, recipe, versions)
    folder = workspace.dataset_folder(recipe)
    manifest = None if workspace.force else reusable(folder, identity)
    reused = manifest is not None
    if manifest is None:
        windows = pl.concat(
            pl.from_arrow(read_windows(found["tensor_shards"])).with_columns(batch=pl.lit(batch))
            for batch, found in shards.items()
        )
        try:
            table, facts = build_table(windows, recipe, policy)
        except DatasetError as error:
            refuse(str(error))
        facts["batches"] = versions
        facts["validation_index_digest"] = fingerprint(
            {batch: found["validation_index"].version for batch, found in shards.items()}
        )
        with draft(folder) as staged:
            write_table(table.to_arrow(), staged.new_file("windows", ".parquet"))
            manifest = staged.commit(identity, facts)
    say(context, f"dataset {recipe}: {'reused' if reused else f'done in {watch.seconds:.1f} s'}")
    return dg.MaterializeResult(
        metadata={
            **artefact_metadata(manifest, workspace.layout, reused=reused, watch=watch),
            **layout_metadata(workspace.layout),
            **_describe(manifest),
        },
        data_version=dg.DataVersion(manifest.version),
        check_results=[_check(manifest), _behind(workspace)],
    )


def dataset_identity(workspace: Workspace, recipe: str, versions: Versions) -> str:
    """Fingerprint of what a recipe's dataset is made from, given the versions of the shards."""
    return fingerprint(
        {
            "stage": DATASET_VERSION,
            "recipe": recipe,
            "policy": asdict(workspace.split_policy),
            "batches": versions,
        }
    )


def _describe(manifest: Manifest) -> dict[str, object]:
    facts = manifest.facts
    profiles, untested = facts["profiles"], facts["untested_profiles"]
    metadata: dict[str, object] = {
        "profiles_tested": f"{len(profiles) - len(untested)} of {len(profiles)} profiles tested",
        "untested_profiles": dg.MetadataValue.json(untested),
        "excluded_episodes": dg.MetadataValue.json(facts["excluded"]),
        "validation_index_digest": facts["validation_index_digest"],
        "roster": dg.MetadataValue.json(
            {split: facts["splits"][split]["windows_by_phase"] for split in SPLITS}
        ),
    }
    for split in SPLITS:
        metadata[f"{split}_windows"] = facts["splits"][split]["windows"]
        metadata[f"{split}_episodes"] = facts["splits"][split]["episodes"]
    return metadata


def _behind(workspace: Workspace) -> dg.AssetCheckResult:
    stale = workspace.stale_batches(workspace.listing())
    said = (
        f"{len(stale)} batches changed since they were ingested; the dataset lacks what is new in "
        "them. Ingest: phasewatch run --ingest-only"
    )
    return dg.AssetCheckResult(
        check_name="every_episode_ingested",
        passed=not stale,
        severity=dg.AssetCheckSeverity.WARN,
        description=said if stale else None,
        metadata={"batches": dg.MetadataValue.json(stale)},
    )


def _check(manifest: Manifest) -> dg.AssetCheckResult:
    """Evidence from the table as written: counts of what is on two sides."""
    table = read_dataset(manifest)
    sides = table.group_by("episode_id").agg(pl.col("split").n_unique())
    on_two = sides.filter(pl.col("split") > 1)["episode_id"].to_list()
    test = table.filter(pl.col("split") == "test")
    training = table.filter(pl.col("split") != "test")
    recipe = manifest.facts["recipe"]
    column = {"host": "host_id", "sample": "sample_sha256"}.get(recipe)
    shared = sorted(set(test[column]) & set(training[column])) if column else []
    gap_s = (test["started_at_wall_ns"].min() - training["ended_at_wall_ns"].max()) / 1e9
    overlap = recipe == "time" and gap_s < manifest.facts["policy"]["gap_s"]
    return dg.AssetCheckResult(
        check_name="splits_disjoint",
        passed=not on_two and not shared and not overlap,
        metadata={
            "episodes_on_two_sides": dg.MetadataValue.json(on_two),
            "shared": dg.MetadataValue.json(shared),
            "seconds_between_training_and_test": gap_s,
        },
    )
