"""Keeps Dagster's batch partitions in step with the store."""

from dataclasses import dataclass

import dagster as dg

from assets.partitions import BATCHES
from episodes.store import StoreListing
from resources.runs import end_dead_runs
from resources.workspace import Workspace


@dataclass(frozen=True)
class Synced:
    """What a look at the store found."""

    listing: StoreListing
    new: list[str]  # batches registered just now
    stale: list[str]  # batches to ingest


def sync_batches(instance: dg.DagsterInstance, workspace: Workspace) -> Synced:
    """Register every batch of the store as a partition. Nothing is ever unregistered.

    Runs whose process was killed are marked as failed on the way: they would count as under way.
    """
    end_dead_runs(instance)
    listing = workspace.listing()
    assert BATCHES.name is not None
    known = set(instance.get_dynamic_partitions(BATCHES.name))
    new = [batch for batch in listing.batches if batch not in known]
    if new:
        instance.add_dynamic_partitions(BATCHES.name, new)
    return Synced(listing, new, workspace.stale_batches(listing))
