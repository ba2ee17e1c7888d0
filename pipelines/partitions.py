"""Keeps Dagster's batch partitions in step with the store."""

from dataclasses import dataclass

import dagster as dg

from assets.partitions import BATCHES
from resources.workspace import Workspace


@dataclass(frozen=True)
class Synced:
    """What a look at the store found."""

    batches: list[str]
    new: list[str]  # registered just now
    stale: list[str]  # to ingest
    differences: tuple[str, ...]  # where the store's index and files disagree


def sync_batches(instance: dg.DagsterInstance, workspace: Workspace) -> Synced:
    """Register every batch of the store as a partition. Nothing is ever unregistered."""
    listing = workspace.listing()
    assert BATCHES.name is not None
    known = set(instance.get_dynamic_partitions(BATCHES.name))
    new = [batch for batch in listing.batches if batch not in known]
    if new:
        instance.add_dynamic_partitions(BATCHES.name, new)
    return Synced(
        batches=list(listing.batches),
        new=new,
        stale=workspace.stale_batches(listing),
        differences=listing.differences,
    )
