"""Keeps Dagster's batch partitions in step with the store."""

from dataclasses import dataclass

import dagster as dg

from assets.partitions import BATCHES
from episodes.store import StoreListing
from resources.runs import end_dead_runs
from stages.project import Due, Project
from stages.workspace import Workspace


@dataclass(frozen=True)
class Synced:
    """What a look at the store showed."""

    project: Project
    new: list[str]  # batches registered just now
    due: list[Due]  # batches to ingest

    @property
    def listing(self) -> StoreListing:
        return self.project.listing

    @property
    def stale(self) -> list[str]:
        return [due.key for due in self.due]

    @property
    def ingested(self) -> bool:
        """Whether any batch can be trained on."""
        return any(s.usable for s in self.project.statuses(self.project.stages["ingest"]))


def sync_batches(instance: dg.DagsterInstance, workspace: Workspace) -> Synced:
    """Register every batch of the store as a partition. Nothing is ever unregistered.

    Runs whose process was killed are marked as failed on the way: they would count as under way.
    """
    end_dead_runs(instance)
    project = Project(workspace)
    assert BATCHES.name is not None
    known = set(instance.get_dynamic_partitions(BATCHES.name))
    new = [batch for batch in project.listing.batches if batch not in known]
    if new:
        instance.add_dynamic_partitions(BATCHES.name, new)
    return Synced(project, new, project.due("ingest"))
