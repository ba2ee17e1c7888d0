"""Ingestion: one pass over a batch gives its validation index and both kinds of shard."""

from collections.abc import Iterator

import dagster as dg

from assets.partitions import BATCHES, FRESH, OWNERS
from features.ingest import INGEST_VERSION, STAGES, ingest_batch
from features.manifest import Manifest, reusable
from resources.guards import refuse, refuse_throwaway_instance
from resources.reporting import Stopwatch, artefact_metadata, layout_metadata, reporter, say
from resources.workspace import Workspace

_DESCRIPTIONS = {
    "validation_index": (
        "A row an episode: verdict, every reason for it, coverage, gaps, seconds per phase. "
        "Rejected and errored episodes stay in the index and go no further."
    ),
    "tensor_shards": (
        "The 10 Hz series of every usable episode, stored once, memory-mapped; windows are views."
    ),
    "feature_shards": "Five statistics of every channel for every window, one Parquet table.",
}
_KINDS = {
    "validation_index": {"parquet"},
    "tensor_shards": {"numpy", "parquet"},
    "feature_shards": {"parquet"},
}
_INPUT_KIND = {"tensor_shards": "tensor", "feature_shards": "summary"}


@dg.multi_asset(
    name="ingest_batch",
    specs=[
        dg.AssetSpec(
            stage,
            description=_DESCRIPTIONS[stage],
            deps=[] if stage == "validation_index" else ["validation_index"],
            group_name="ingest",
            kinds=_KINDS[stage],
            owners=OWNERS,
            code_version=INGEST_VERSION,
            freshness_policy=FRESH if stage == "validation_index" else None,
        )
        for stage in STAGES
    ],
    check_specs=[
        dg.AssetCheckSpec(
            "labels_match_events",
            asset="validation_index",
            description="No usable episode is labelled infected without the event that shows it.",
            blocking=True,
            partitions_def=BATCHES,
        ),
        dg.AssetCheckSpec(
            "no_channel_all_missing",
            asset="tensor_shards",
            description="Every channel has a value somewhere in the batch.",
            partitions_def=BATCHES,
        ),
    ],
    partitions_def=BATCHES,
    can_subset=True,
)
def batch_assets(
    context: dg.AssetExecutionContext, workspace: Workspace
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """Validate a batch's episodes and write its shards, each episode read once."""
    refuse_throwaway_instance(context.instance)
    watch = Stopwatch()
    batch = context.partition_key
    listing = workspace.listing()
    if batch not in listing.batches:
        refuse(f"Batch {batch} is not in the store {workspace.store_path}.")
    episodes = listing.batches[batch]
    folder = workspace.batch_folder(batch)
    wanted = [s for s in STAGES if dg.AssetKey(s) in context.selected_asset_keys]
    fingerprint = workspace.fingerprint(episodes)

    found = {stage: reusable(folder / stage, fingerprint) for stage in wanted}
    manifests = {stage: manifest for stage, manifest in found.items() if manifest}
    reused = len(manifests) == len(wanted) and not workspace.force
    if not reused:
        manifests = ingest_batch(
            episodes,
            folder,
            workspace.policy,
            workspace.layout,
            stages=wanted,
            progress=reporter(context, f"ingest {batch}"),
        )
    say(context, f"ingest {batch}: {'reused' if reused else f'done in {watch.seconds:.1f} s'}")

    for stage, manifest in manifests.items():
        metadata = (
            _index_metadata(manifest)
            if stage == "validation_index"
            else (_shard_metadata(manifest) | layout_metadata(workspace.layout, _INPUT_KIND[stage]))
        )
        yield dg.MaterializeResult(
            asset_key=stage,
            metadata=artefact_metadata(manifest, workspace.layout, reused=reused, watch=watch)
            | metadata,
            data_version=dg.DataVersion(manifest.version),
            check_results=list(_checks(context, stage, manifest)),
        )


def _index_metadata(manifest: Manifest) -> dict[str, object]:
    facts = manifest.facts
    return {
        "dagster/partition_row_count": facts["episodes"],
        "episodes_read_bytes": facts["bytes_read"],
        "synthetic_episodes": facts["synthetic"],
        "reasons": dg.MetadataValue.json(facts["reasons"]),
        "seconds_by_phase": dg.MetadataValue.json(facts["seconds_by_phase"]),
        **facts["verdicts"],
    }


def _shard_metadata(manifest: Manifest) -> dict[str, object]:
    facts = manifest.facts
    return {
        "dagster/partition_row_count": facts["windows"],
        "episodes": facts["episodes"],
        "bins": facts["bins"],
        "windows_by_phase": dg.MetadataValue.json(facts["windows_by_phase"]),
        **{f"coverage_{source}": share for source, share in facts["coverage"].items()},
    }


def _checks(
    context: dg.AssetExecutionContext, stage: str, manifest: Manifest
) -> Iterator[dg.AssetCheckResult]:
    chosen = {key.name for key in context.selected_asset_check_keys}
    if stage == "validation_index" and "labels_match_events" in chosen:
        unjustified = manifest.facts["unjustified_usable"]
        yield dg.AssetCheckResult(
            asset_key=stage,
            check_name="labels_match_events",
            passed=not unjustified,
            metadata={
                "episodes_with_infected_labels": manifest.facts["with_infected_labels"],
                "usable_without_event": dg.MetadataValue.json(unjustified),
                "rejected_without_event": manifest.facts["reasons"].get(
                    "infection_without_event", 0
                ),
            },
        )
    if stage == "tensor_shards" and "no_channel_all_missing" in chosen:
        missing = manifest.facts["missing_channels"]
        yield dg.AssetCheckResult(
            asset_key=stage,
            check_name="no_channel_all_missing",
            passed=not missing,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={
                "missing_channels": dg.MetadataValue.json(missing),
                "coverage": dg.MetadataValue.json(manifest.facts["coverage"]),
            },
        )
