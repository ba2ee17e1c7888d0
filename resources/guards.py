"""Refusals that only Dagster can make: of an instance that forgets, of what it did not record.

The loader (``models.checkpoint.load_checkpoint``) refuses another contract by itself.
"""

from pathlib import Path
from typing import NoReturn

import dagster as dg

from config.paths import DAGSTER_HOME, unusable_home
from stages.project import Project
from stages.stage import Stage
from stages.workspace import Workspace

_THROWAWAY_HOME = ".tmp_dagster_home_"  # what `dagster` makes if DAGSTER_HOME is not set


def refuse(description: str, differences: list[str] | None = None) -> NoReturn:
    """Fail the step for good: trying again would not help."""
    metadata = {}
    if differences:
        metadata["differences"] = dg.MetadataValue.md("\n".join(f"- {d}" for d in differences))
    raise dg.Failure(description=description, metadata=metadata, allow_retries=False)


def check_instance(instance: dg.DagsterInstance, workspace: Workspace) -> None:
    """Refuse an instance that forgets what was materialized, or is another folder's history."""
    home = None if instance.is_ephemeral else Path(instance.root_directory)
    if home is None or home.name.startswith(_THROWAWAY_HOME):
        refuse(
            "DAGSTER_HOME is not set, so this run would not be recorded. Run: export "
            f"DAGSTER_HOME={workspace.artifacts_path / DAGSTER_HOME}"
        )
    if problem := unusable_home(home, workspace.artifacts_path):
        refuse(problem)


def check_recorded(instance: dg.DagsterInstance, project: Project, stage: Stage, key: str) -> None:
    """Refuse a checkpoint on disk that is not the one whose training Dagster recorded.

    One that is missing or unreadable is for ``Project.require`` to name.

    Raises:
        dg.Failure: it was never trained under this instance, or was replaced by hand.
    """
    for upstream, partition in stage.needs(project, key):
        artifact = project.artifact(upstream.name, partition) if upstream.recorded else None
        if artifact is None or artifact.header is None:
            continue
        metadata = last_metadata(instance, upstream.name, partition)
        if metadata is None:
            refuse(
                f"{upstream.name} {partition}: Dagster has no record of its training. "
                f"Run: {project.workspace.addressed(upstream.remedy(partition))}"
            )
        version = artifact.version
        if metadata.get("checkpoint_id") != version:
            refuse(
                f"{upstream.name} {partition}: not the checkpoint that was trained. Dagster "
                f"recorded {str(metadata.get('checkpoint_id'))[:12]}, the file is {version[:12]}. "
                "Restore the file, or retrain: "
                f"{project.workspace.addressed(upstream.remedy(partition))}"
            )


def last_metadata(
    instance: dg.DagsterInstance, output: str, partition: str | None
) -> dict[str, object] | None:
    """Metadata of the last materialization of an asset's partition; None if there is none."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(output.split("/")),
            asset_partitions=[partition] if partition else None,
        ),
        limit=1,
    ).records
    if not records or records[0].asset_materialization is None:
        return None
    return {name: v.value for name, v in records[0].asset_materialization.metadata.items()}
