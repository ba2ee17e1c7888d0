"""Checkpoints: one asset per model and mode, partitioned by recipe."""

import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg

from assets.partitions import OWNERS, RECIPE_PARTITIONS
from evaluation.datasets import examples, read_dataset
from features.contract import contract_of
from features.manifest import Manifest, fingerprint
from models.base import Classifier
from models.checkpoint import (
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    read_header,
    save_checkpoint,
)
from models.registry import VARIANTS, Variant
from models.scaling import principal_axes
from resources.guards import checkpoint_key, refuse_throwaway_instance, require_dataset
from resources.reporting import Stopwatch, layout_metadata, reporter, say
from resources.workspace import ROOT, Workspace

CHECKPOINT_VERSION = "1"
_KINDS = {"torch": "pytorch"}  # where Dagster has another name for a library


def build_checkpoint_asset(which: Variant) -> dg.AssetsDefinition:
    """The asset that trains one variant."""

    @dg.asset(
        key=checkpoint_key(which),
        partitions_def=RECIPE_PARTITIONS,
        deps=["datasets"],
        group_name="train",
        kinds={_KINDS.get(which.spec.library, which.spec.library)},
        owners=OWNERS,
        code_version=CHECKPOINT_VERSION,
        pool="training",
        description=(
            f"{which.model}, {which.mode}: {which.spec.description}. The header carries the "
            "contract of its input; loading it for another layout is refused."
        ),
    )
    def checkpoint(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
        refuse_throwaway_instance(context.instance)
        watch = Stopwatch()
        recipe = context.partition_key
        dataset, shards = require_dataset(workspace, recipe)
        config = workspace.model_config_of(which)
        identity = checkpoint_identity(workspace, which, dataset.version)
        folder = workspace.checkpoint_folder(recipe)
        header = None if workspace.force else _reusable(folder, which, identity, workspace)
        reused = header is not None
        if header is None:
            table = read_dataset(dataset)
            train, val = (
                examples(table, shards, split, which, workspace.layout)
                for split in ("train", "val")
            )
            model = which.spec.build(
                config, len(workspace.layout.phases), seed=workspace.seed, device=workspace.device
            )
            model.fit(train, val, reporter(context, f"train {which.name} ({recipe})"))
            header = save_checkpoint(
                folder,
                which,
                model,
                workspace.layout,
                pca_proj=principal_axes(train.X),
                train_meta=_train_meta(which, recipe, dataset, model, workspace, identity),
            )
        score = header["train_meta"]["val_macro_f1"]
        say(
            context,
            f"train {which.name} ({recipe}): val macro F1 {score:.3f}, "
            + ("reused" if reused else f"done in {watch.seconds:.1f} s"),
        )
        return dg.MaterializeResult(
            metadata=_metadata(header, checkpoint_path(folder, which))
            | layout_metadata(workspace.layout, which.spec.input_kind)
            | {
                # the hashes as written, not as they should be: the guards compare these
                "schema_hash": header["schema_hash"],
                "contract_hash": header["contract_hash"],
                "reused": reused,
                "fingerprint": identity,
                "seconds": watch.seconds,
            },
            data_version=dg.DataVersion(header["artifact_id"]),
        )

    return checkpoint


def checkpoint_identity(workspace: Workspace, which: Variant, dataset_version: str) -> str:
    """Fingerprint of what a variant is trained from; the header keeps it in ``train_meta``."""
    return fingerprint(
        {
            "stage": CHECKPOINT_VERSION,
            "dataset": dataset_version,
            "variant": which.name,
            "config": asdict(workspace.model_config_of(which)),
            "seed": workspace.seed,
            "contract": contract_of(workspace.layout, which.spec.input_kind).hash,
        }
    )


def _reusable(
    folder: Path, which: Variant, identity: str, workspace: Workspace
) -> dict[str, Any] | None:
    """The header on disk if it was trained from equal inputs and still loads."""
    path = checkpoint_path(folder, which)
    try:
        header = read_header(path)
        if header["train_meta"].get("fingerprint") != identity:
            return None
        load_checkpoint(path, workspace.layout)
    except CheckpointError:
        return None
    return header


def _train_meta(
    which: Variant,
    recipe: str,
    dataset: Manifest,
    model: Classifier,
    workspace: Workspace,
    identity: str,
) -> dict[str, Any]:
    facts = dataset.facts
    return {
        "fingerprint": identity,
        "recipe": recipe,
        "split_policy": facts["policy"],
        "roster": sorted(facts["splits"]["train"]["windows_by_phase"]),
        "train_windows": facts["splits"]["train"]["windows"],
        "val_windows": facts["splits"]["val"]["windows"],
        "dataset_version": dataset.version,
        "validation_index_digest": facts["validation_index_digest"],
        "seed": workspace.seed,
        "device": model.device_,
        "code_commit": code_commit(),
        "libraries": {name: version(name) for name in ("numpy", which.spec.library)},
        "val_macro_f1": model.val_macro_f1_,
        "best_step": model.history_.best_step,
        "history": [
            [e.step, e.train_loss, e.val_loss, e.val_macro_f1] for e in model.history_.epochs
        ],
    }


def code_commit() -> str:
    """The clone's commit, with ``-dirty`` where it has uncommitted changes; else ``unknown``."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _metadata(header: dict[str, Any], path: Path) -> dict[str, Any]:
    meta = header["train_meta"]
    return {
        "checkpoint_id": header["artifact_id"],
        "path": str(path),
        "bytes": path.stat().st_size + header["sidecar_bytes"],
        "val_macro_f1": meta["val_macro_f1"],
        "train_windows": meta["train_windows"],
        "best_step": meta["best_step"],
        "dataset_version": meta["dataset_version"],
        "code_commit": meta["code_commit"],
        "device": meta["device"],
    }


def build_contract_check(which: Variant) -> dg.AssetChecksDefinition:
    """The blocking check that shows whether a checkpoint fits the live contract."""

    @dg.asset_check(
        asset=checkpoint_key(which),
        name="contract_current",
        description="The checkpoint loads for the input layout in force.",
        blocking=True,
        partitions_def=RECIPE_PARTITIONS,
    )
    def contract_current(
        context: dg.AssetCheckExecutionContext, workspace: Workspace
    ) -> dg.AssetCheckResult:
        path = checkpoint_path(workspace.checkpoint_folder(context.partition_key), which)
        live = contract_of(workspace.layout, which.spec.input_kind).hash
        try:
            checkpoint = load_checkpoint(path, workspace.layout)
        except CheckpointError as error:
            lines = getattr(error, "differences", [str(error)])
            return dg.AssetCheckResult(
                passed=False,
                description=str(error),
                metadata={
                    "differences": dg.MetadataValue.md("\n".join(f"- {x}" for x in lines)),
                    "live_contract_hash": live,
                },
            )
        return dg.AssetCheckResult(
            passed=True,
            metadata={
                "live_contract_hash": live,
                "checkpoint_id": checkpoint.artifact_id,
            },
        )

    return contract_current


CHECKPOINT_ASSETS = [build_checkpoint_asset(which) for which in VARIANTS]
CONTRACT_CHECKS = [build_contract_check(which) for which in VARIANTS]
