"""Keeps Dagster's batch partitions in step with the store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import dagster as dg
from sqlalchemy.exc import IntegrityError

from assets.partitions import BATCHES
from episodes.store import StoreListing
from resources.runs import PARTITION_TAG, end_dead_runs
from stages.project import DueWork, Project
from stages.workspace import Workspace

_RANGE_START_TAG = "dagster/asset_partition_range_start"
_RANGE_END_TAG = "dagster/asset_partition_range_end"
_NAME = str(BATCHES.name)
_KEYS_AT_A_TIME = 10_000  # Dagster puts all into one IN, and SQLite takes 32,766 values


@dataclass(frozen=True)
class SyncResult:
    """What a look at the store showed."""

    project: Project
    new: list[str]  # batches registered just now
    ended: list[str]  # runs that counted as under way and had no process

    @cached_property
    def due(self) -> list[DueWork]:
        """The batches to ingest."""
        return self.project.due("ingest")

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


def partition_ranges(
    instance: dg.DagsterInstance, batches: Iterable[str], most: int, *, exact: bool = False
) -> list[list[str]]:
    """Batches in the order of their partitions, so many in a range at most.

    Args:
        exact: no other batch is between the first and the last of a range; else a run of the range
            finds those that are current and leaves them.
    """
    order = _order(instance)
    ranges: list[list[str]] = []
    for batch in sorted(batches, key=order.__getitem__):
        full = not ranges or len(ranges[-1]) == most
        if full or (exact and order[batch] != order[ranges[-1][-1]] + 1):
            ranges.append([])
        ranges[-1].append(batch)
    return ranges


def _order(instance: dg.DagsterInstance) -> dict[str, int]:
    """The place of each partition among all."""
    return {key: i for i, key in enumerate(instance.get_dynamic_partitions(_NAME))}


def partition_tags(keys: Sequence[str]) -> dict[str, str]:
    """The tags of a run of one partition, or of all from the first to the last of these."""
    if len(keys) == 1:
        return {PARTITION_TAG: keys[0]}
    return {_RANGE_START_TAG: keys[0], _RANGE_END_TAG: keys[-1]} if keys else {}


def partition_label(keys: Sequence[str]) -> str:
    """A partition, or a range of them as Dagster writes it."""
    return keys[0] if len(keys) == 1 else f"{keys[0]}...{keys[-1]}" if keys else ""


class RunCoverage:
    """Which batches a run makes, by its tags."""

    def __init__(self, instance: dg.DagsterInstance):
        self._instance = instance

    @cached_property
    def _order(self) -> dict[str, int]:
        return _order(self._instance)

    def includes(self, run: dg.DagsterRun, key: str) -> bool:
        """Whether a run is of a partition; the empty key is that of runs without one."""
        first, last = run.tags.get(_RANGE_START_TAG), run.tags.get(_RANGE_END_TAG)
        if first is None or last is None:
            return run.tags.get(PARTITION_TAG, "") == key
        if not {first, last, key} <= self._order.keys():
            return False
        return self._order[first] <= self._order[key] <= self._order[last]


def sync_batches(instance: dg.DagsterInstance, workspace: Workspace) -> SyncResult:
    """Register every batch of the store as a partition. Nothing is ever unregistered.

    Runs whose process was killed are ended on the way: they would count as under way.
    """
    ended = end_dead_runs(instance)
    project = Project(workspace)
    known = set(instance.get_dynamic_partitions(_NAME))
    new = [batch for batch in project.listing.batches if batch not in known]
    for i in range(0, len(new), _KEYS_AT_A_TIME):
        _register(instance, new[i : i + _KEYS_AT_A_TIME])
    return SyncResult(project, new, ended)


def _register(instance: dg.DagsterInstance, batches: list[str]) -> None:
    """Dagster looks which keys there are and adds the others: two at once may add the same."""
    for last in (False, False, True):
        try:
            instance.add_dynamic_partitions(_NAME, batches)
        except IntegrityError:
            if last:
                raise
        else:
            return
