"""Refusals: what stops a run before it uses something untrustworthy.

A blocking asset check stops a graph only within its own run; these guards stand at the top of an
asset's body and refuse every time. The loader's own check (``models.checkpoint``) is the truth.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import dagster as dg

from features.contract import contract_of, diff_contracts
from features.manifest import Manifest, read_manifest
from models.champion import ChampionError, Reign, load_kept, read_champion
from models.checkpoint import (
    Checkpoint,
    CheckpointError,
    ContractMismatchError,
    check_contract,
    checkpoint_path,
    load_checkpoint,
    read_header,
)
from models.registry import Variant
from resources.workspace import Workspace

_THROWAWAY_HOME = ".tmp_dagster_home_"  # what `dagster` makes where DAGSTER_HOME is not set


def refuse(description: str, differences: list[str] | None = None) -> NoReturn:
    """Fail the step for good: trying again would not help."""
    metadata = {}
    if differences:
        metadata["differences"] = dg.MetadataValue.md("\n".join(f"- {d}" for d in differences))
    raise dg.Failure(description=description, metadata=metadata, allow_retries=False)


def refuse_throwaway_instance(instance: dg.DagsterInstance) -> None:
    """Refuse an instance that forgets what was materialised as soon as the command ends."""
    home = None if instance.is_ephemeral else Path(instance.root_directory)
    if home is None or home.name.startswith(_THROWAWAY_HOME):
        refuse(
            "This run's Dagster instance is thrown away when the command ends, so nothing could "
            "be guarded by what it records. Set DAGSTER_HOME to an absolute folder: "
            'export DAGSTER_HOME="$PWD/artifacts/dagster_home"'
        )


def checkpoint_key(which: Variant) -> dg.AssetKey:
    return dg.AssetKey(["checkpoints", which.name])


def require_checkpoint(
    instance: dg.DagsterInstance, workspace: Workspace, recipe: str, which: Variant
) -> Checkpoint:
    """The checkpoint of a recipe, if Dagster saw it trained, for the live contract, as it is.

    Raises:
        dg.Failure: it was never trained, was trained under another contract (with the diff), is
            not the one that was trained, or does not load.
    """
    path = checkpoint_path(workspace.checkpoint_folder(recipe), which)
    require_recorded(instance, workspace, recipe, which, path)
    try:
        return load_checkpoint(path, workspace.layout)
    except ContractMismatchError as error:
        refuse(str(error), error.differences)
    except CheckpointError as error:
        refuse(str(error))


def require_champion(workspace: Workspace) -> tuple[Reign, Checkpoint]:
    """The champion and its checkpoint that scores.

    Raises:
        dg.Failure: there is none, it is for another contract (with the diff), or does not load.
    """
    try:
        reign = read_champion(workspace.champion_folder)
        if reign is None:
            refuse(
                "There is no champion to score with. Promote a trained model: phasewatch promote "
                "gbt. Or name a checkpoint in the run configuration: ops: predictions: config: "
                "{model: gbt, recipe: host}"
            )
        return reign, load_kept(workspace.champion_folder, reign, workspace.layout)
    except ContractMismatchError as error:
        refuse(str(error), error.differences)
    except (ChampionError, CheckpointError) as error:
        refuse(str(error))


def require_recorded(
    instance: dg.DagsterInstance, workspace: Workspace, recipe: str, which: Variant, path: Path
) -> None:
    """Compare the checkpoint's last materialisation with the live contract and with the disk.

    Raises:
        dg.Failure: they differ, or there is no materialisation.
    """
    retrain = f"phasewatch run --recipe {recipe}"
    recorded = last_metadata(instance, checkpoint_key(which), recipe)
    if recorded is None:
        refuse(f"{which.name} was never trained for recipe {recipe}. Train it: {retrain}")
    live = contract_of(workspace.layout, which.spec.input_kind)
    if recorded.get("contract_hash") != live.hash:
        try:
            check_contract(read_header(path), workspace.layout, str(path))
        except ContractMismatchError as error:
            refuse(str(error), error.differences)
        except CheckpointError as error:
            refuse(str(error))
        refuse(
            f"{which.name} was recorded under contract {recorded.get('contract_hash')}, the live "
            f"one is {live.hash}. Retrain: {retrain}"
        )
    try:
        header = read_header(path)
    except CheckpointError as error:
        refuse(str(error))
    if header["artifact_id"] != recorded.get("checkpoint_id"):
        refuse(
            f"{path} is not the checkpoint that was trained: Dagster recorded "
            f"{str(recorded.get('checkpoint_id'))[:12]}, the file is {header['artifact_id'][:12]}. "
            f"Restore the file, or retrain: {retrain}"
        )


def last_metadata(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str
) -> dict[str, object] | None:
    """Metadata of the last materialisation of a partition; None: there is none."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
    ).records
    if not records or records[0].asset_materialization is None:
        return None
    return {name: v.value for name, v in records[0].asset_materialization.metadata.items()}


def batch_faults(
    workspace: Workspace, batch: str, manifests: Mapping[str, Manifest | None]
) -> tuple[list[str], list[str]]:
    """Why nothing can be built on a batch as it was ingested; none where it can.

    Episodes that arrived since are no reason: a store that is in use is never at rest.

    Args:
        manifests: what is on disk of it, by stage.

    Returns:
        The faults, and how the input contract has changed where that is the cause.
    """
    faults: list[str] = []
    differences: list[str] = []
    for stage, manifest in manifests.items():
        if manifest is None:
            faults.append(f"{batch}: {stage} is missing")
        elif manifest.facts.get("settings") != workspace.ingest_settings:
            drift = _contract_drift(manifest, workspace)
            differences += [line for line in drift if line not in differences]
            why = "another input layout" if drift else "another policy or version of phasewatch"
            faults.append(f"{batch}: {stage} is stale, made for {why}")
    if not faults and len({m.fingerprint for m in manifests.values() if m}) > 1:
        faults.append(f"{batch}: its stages were not made from the same episodes")
    return faults, differences


def require_batches(
    workspace: Workspace, wanted: list[str] | None = None, *, verify: bool = False
) -> dict[str, dict[str, Manifest]]:
    """Manifests of batches as they were ingested, which episodes that arrived since do not change.

    Args:
        wanted: batch keys; None: every batch of the store.
        verify: read every file and compare its hash as well.

    Raises:
        dg.Failure: names every batch that is missing or stale, why, and the command to run.
    """
    listing = workspace.listing()
    found: dict[str, dict[str, Manifest]] = {}
    faults: list[str] = []
    differences: list[str] = []
    for batch in listing.batches if wanted is None else wanted:
        if batch not in listing.batches:
            faults.append(f"{batch}: not in the store {workspace.store_path}")
            continue
        manifests = workspace.batch_manifests(batch)
        wrong, drift = batch_faults(workspace, batch, manifests)
        faults += wrong
        differences += [line for line in drift if line not in differences]
        found[batch] = {stage: m for stage, m in manifests.items() if m is not None}
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        drift_text = "".join(f"\n  - {line}" for line in differences)
        refuse(
            f"Batches are not ingested as they should be:\n{listed}"
            + (f"\nThe input layout changed:{drift_text}" if differences else "")
            + f"\nIngest them: phasewatch run --ingest-only (store {workspace.store_path})",
            differences or faults,
        )
    if not found:
        refuse(f"The store {workspace.store_path} has no batch.")
    for batch, whole in found.items() if verify else ():
        for manifest in whole.values():
            if damage := manifest.damage():
                refuse(
                    f"{batch}: {damage}. Make it anew: dagster job execute -m "
                    "pipelines.definitions -j ingest --tags "
                    f'\'{{"dagster/partition": "{batch}"}}\''
                )
    return found


def _contract_drift(manifest: Manifest, workspace: Workspace) -> list[str]:
    lines: list[str] = []
    for kind, was in manifest.facts.get("contracts", {}).items():
        for line in diff_contracts(was, contract_of(workspace.layout, kind).sections):
            if line not in lines:
                lines.append(line)
    return lines


def require_manifest(folder: Path, what: str, remedy: str) -> Manifest:
    """A finished, undamaged artefact.

    Raises:
        dg.Failure: it is absent or was changed after it was written.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        refuse(f"{what} is missing ({folder}). Make it: {remedy}")
    damage = manifest.damage()
    if damage:
        refuse(f"{what}: {damage}. Make it anew: {remedy}")
    return manifest


def require_dataset(
    workspace: Workspace, recipe: str
) -> tuple[Manifest, dict[str, dict[str, Manifest]]]:
    """The dataset of a recipe and the shards it points into, by batch and stage.

    Raises:
        dg.Failure: it is absent or damaged, or the shards are not those it was built on.
    """
    remedy = f"phasewatch run --recipe {recipe}"
    manifest = require_manifest(workspace.dataset_folder(recipe), f"Dataset {recipe}", remedy)
    shards = require_batches(workspace, list(manifest.facts["batches"]))
    for batch, versions in manifest.facts["batches"].items():
        for stage, version in versions.items():
            if shards[batch][stage].version != version:
                refuse(
                    f"Dataset {recipe} was built on other {stage} of {batch}. Build it anew: "
                    f"{remedy}"
                )
    return manifest, shards
