"""Dagster's records: how large they are, and dropping the old ones, which Dagster 1.13 cannot do.

What stays, however old: the last event of each kind (materialization, plan, failure, …) of every
asset and partition, the last evaluation of every check and partition, and the run of each. Of such
a run the record, its beginning, its end and its failures stay; the rest of its log goes. All other
runs that ended go with ``delete_run``, which by itself would take last materializations along, and
leaves check evaluations, files of SQLite and captured output behind.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.events import EVENT_TYPE_TO_PIPELINE_RUN_STATUS
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.runs.schema import RunTagsTable

from resources.runs import UNFINISHED

IDENTITY_TAG = "phasewatch/identity"
"""Says what a requested run was for; see ``pipelines.requests``."""

_EVENTS, _CHECKS = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c
_TOLD = [
    *(kind.value for kind in EVENT_TYPE_TO_PIPELINE_RUN_STATUS),
    dg.DagsterEventType.STEP_FAILURE.value,
]
"""Events of a run that stay with its record: how it began and ended, and why it failed."""

_CHUNK = 500  # run ids of one statement
_SMALL_PAGE = 512  # a log with nothing in it is 15 kB of these, and 115 kB of the usual 4096
_THINNED_BYTES = 40_000  # a larger log of a run that stays has more in it than it needs
_PAYS = 0.2  # share of a database that is free, from which it is written anew


@dataclass(frozen=True)
class PrunedRecords:
    """What pruning dropped of the records, or would drop."""

    runs: int = 0  # deleted
    logs: int = 0  # of runs that stay, reduced to their beginning and end
    events: int = 0  # of all runs together; of SQLite those of the index, which all runs share
    ticks: bool = False  # old ticks of sensors and schedules were dropped too
    n_bytes: int = 0  # freed; before it is done, an estimate


@dataclass(frozen=True)
class _Plan:
    delete: list[str]
    thin: list[str]
    events: int
    event_bytes: int


def prune_records(
    instance: dg.DagsterInstance, before: datetime, *, dry_run: bool = False
) -> PrunedRecords:
    """Drop what ended before a moment and is not the last of anything.

    Killed at any moment, it leaves nothing that the next call does not finish.

    Args:
        before: with a time zone.
        dry_run: say what would go; nothing is changed.
    """
    plan = _plan(instance, before)
    logs = _Logs.of(instance)
    thick = [run for run in plan.thin if logs.n_bytes(run) > _THINNED_BYTES]
    if dry_run:
        thinned = sum(logs.n_bytes(run) - _THINNED_BYTES // 2 for run in thick)
        gone = sum(map(logs.n_bytes, plan.delete))
        return PrunedRecords(
            len(plan.delete), len(thick) if logs.folder else len(plan.thin), plan.events,
            n_bytes=plan.event_bytes + thinned + gone,
        )  # fmt: skip
    size = record_bytes(instance)
    for run in plan.delete:
        instance.delete_run(run)
        _drop_evaluations(instance, [run])
        logs.remove(run)
        instance.compute_log_manager.delete_logs(prefix=[run])
    for chunk in _chunks(plan.thin):
        _thin(instance, chunk)
    for run in plan.thin:
        instance.compute_log_manager.delete_logs(prefix=[run])
    for run in thick:
        logs.shrink(run)
    logs.remove_orphans(instance, before)
    _drop_tags(instance, before)
    for state in instance.all_instigator_state():
        instance.purge_ticks(state.instigator_origin_id, state.selector_id, before.timestamp())
    _vacuum(instance)
    return PrunedRecords(
        len(plan.delete), len(thick) if logs.folder else len(plan.thin), plan.events,
        ticks=True, n_bytes=max(0, size - record_bytes(instance)),
    )  # fmt: skip


def record_bytes(instance: dg.DagsterInstance) -> int:
    """Size of the database; of SQLite that of all its files."""
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        if connection.dialect.name == "postgresql":
            size = connection.execute(sa.text("SELECT pg_database_size(current_database())"))
            return int(size.scalar_one())
    files = {file for path in _databases(instance) for file in path.parent.glob("*.db*")}
    return sum(_size(file) for file in files)


# --- what goes


def _plan(instance: dg.DagsterInstance, before: datetime) -> _Plan:
    """Runs to delete, and runs that stay but for their logs."""
    busy = {
        *instance.get_run_ids(dg.RunsFilter(statuses=UNFINISHED)),
        *instance.get_run_ids(dg.RunsFilter(updated_after=before)),
        "",  # events without a run
    }
    kept = _EVENTS.id.in_(_last_events())
    told = _EVENTS.dagster_event_type.in_(_TOLD)
    detail = sa.and_(sa.not_(kept), sa.or_(_EVENTS.dagster_event_type.is_(None), sa.not_(told)))
    query = (
        sa.select(
            _EVENTS.run_id,
            _count(kept),
            sa.func.count(),
            _count(detail),
            sa.func.sum(sa.func.length(_EVENTS.event)),
            sa.func.sum(sa.case((detail, sa.func.length(_EVENTS.event)), else_=0)),
        )
        .where(_EVENTS.timestamp < _naive(before))
        .group_by(_EVENTS.run_id)
    )
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        rows = [row for row in connection.execute(query) if row[0] not in busy]
    of_last = {row[0] for row in rows if row[1]}
    together = _same_work(instance)
    delete, thin, events, n_bytes = [], [], 0, 0
    gone = {row[0] for row in rows} - of_last
    for run, _, n_all, n_detail, bytes_all, bytes_detail in rows:
        # a run key counts the runs there were for the same work: these go together or not at all
        if run in of_last or not together.get(run, {run}) <= gone:
            thin.append(run)
            events, n_bytes = events + n_detail, n_bytes + bytes_detail
        else:
            delete.append(run)
            events, n_bytes = events + n_all, n_bytes + bytes_all
    return _Plan(delete, thin, int(events), int(n_bytes))


def _last_events() -> sa.sql.Select[Any]:
    """Ids of the events that stay whatever their age."""
    of_assets = (
        sa.select(sa.func.max(_EVENTS.id).label("id"))
        .where(_EVENTS.asset_key.is_not(None))
        .group_by(_EVENTS.asset_key, _EVENTS.partition, _EVENTS.dagster_event_type)
    )
    checked = [
        sa.select(column.label("id")).where(
            _CHECKS.id.in_(_last_evaluations()), column.is_not(None)
        )
        for column in (
            _CHECKS.evaluation_event_storage_id,
            _CHECKS.materialization_event_storage_id,
        )
    ]
    newest = sa.select(sa.func.max(_EVENTS.id).label("id"))  # SQLite would give its id again
    return sa.select(sa.union_all(of_assets, *checked, newest).subquery().c.id)


def _last_evaluations() -> sa.sql.Select[Any]:
    """Ids of the rows of each check's last evaluation."""
    return sa.select(sa.func.max(_CHECKS.id)).group_by(
        _CHECKS.asset_key, _CHECKS.check_name, _CHECKS.partition
    )


def _same_work(instance: dg.DagsterInstance) -> dict[str, set[str]]:
    """Run -> the runs that were requested for the same work, itself among them."""
    query = sa.select(RunTagsTable.c.value, RunTagsTable.c.run_id).where(
        RunTagsTable.c.key == IDENTITY_TAG
    )
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        rows = list(connection.execute(query))
    works: dict[str, set[str]] = {}
    for identity, run in rows:
        works.setdefault(identity, set()).add(run)
    return {run: works[identity] for identity, run in rows}


# --- dropping it


def _thin(instance: dg.DagsterInstance, runs: Sequence[str]) -> None:
    """Drop all events of runs but the last of something, the beginnings, ends and failures."""
    kind = _EVENTS.dagster_event_type
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        connection.execute(
            SqlEventLogStorageTable.delete().where(
                _EVENTS.run_id.in_(runs),
                sa.or_(kind.is_(None), kind.not_in(_TOLD)),
                _EVENTS.id.not_in(_last_events()),
            )
        )
    _drop_evaluations(instance, runs)


def _drop_evaluations(instance: dg.DagsterInstance, runs: Sequence[str]) -> None:
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        connection.execute(
            AssetCheckExecutionsTable.delete().where(
                _CHECKS.run_id.in_(runs), _CHECKS.id.not_in(_last_evaluations())
            )
        )


def _drop_tags(instance: dg.DagsterInstance, before: datetime) -> None:
    """Drop the tags of events that are gone."""
    tags = AssetEventTagsTable.c
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        connection.execute(
            AssetEventTagsTable.delete().where(
                tags.event_timestamp < _naive(before),
                tags.event_id.not_in(sa.select(_EVENTS.id)),
            )
        )


@dataclass(frozen=True)
class _Logs:
    """The files in which SQLite keeps the log of each run; without a folder there are none."""

    folder: Path | None

    @classmethod
    def of(cls, instance: dg.DagsterInstance) -> _Logs:
        with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
            if connection.dialect.name != "sqlite":
                return cls(None)
            return cls(Path(str(connection.engine.url.database)).parent)

    def n_bytes(self, run: str) -> int:
        return _size(self.folder / f"{run}.db") if self.folder else 0

    def remove(self, run: str) -> None:
        if self.folder:
            for suffix in (".db", ".db-wal", ".db-shm"):
                (self.folder / f"{run}{suffix}").unlink(missing_ok=True)

    def shrink(self, run: str) -> None:
        """Leave the tables, the beginning, the end and the failures.

        In place: a web server remembers which files it has prepared, and would fail to read one
        that was made anew. One that is being read is left for the next time.
        """
        assert self.folder is not None
        told = ", ".join("?" * len(_TOLD))
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(
                sqlite3.connect(self.folder / f"{run}.db", timeout=1, isolation_level=None)
            ) as connection,
        ):
            connection.execute("PRAGMA journal_mode=DELETE")  # the size of pages can be set only so
            connection.execute(
                "DELETE FROM event_logs WHERE dagster_event_type IS NULL "
                f"OR dagster_event_type NOT IN ({told})",
                _TOLD,
            )
            connection.execute(f"PRAGMA page_size={_SMALL_PAGE}")
            connection.execute("VACUUM")
            connection.execute("PRAGMA journal_mode=WAL")

    def remove_orphans(self, instance: dg.DagsterInstance, before: datetime) -> None:
        """Remove the files of runs that are no more: of one deleted in the UI, its log stays."""
        if self.folder is None:
            return
        old = {
            path.stem
            for path in self.folder.glob("*-*-*.db")  # a run id; not index.db, not .db
            if path.stat().st_mtime < before.timestamp()
        }
        for run in old - set(instance.get_run_ids()):
            self.remove(run)
            instance.compute_log_manager.delete_logs(prefix=[run])


def _vacuum(instance: dg.DagsterInstance) -> None:
    """Give free pages back to the disk where they are many. PostgreSQL does so by itself."""
    for path in _databases(instance):
        with (
            contextlib.suppress(sqlite3.OperationalError),  # busy: the next time
            contextlib.closing(
                sqlite3.connect(path, timeout=10, isolation_level=None)
            ) as connection,
        ):
            (free,), (pages,) = (
                connection.execute(f"PRAGMA {name}").fetchone()
                for name in ("freelist_count", "page_count")
            )
            if free > _PAYS * pages:
                connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _databases(instance: dg.DagsterInstance) -> Iterator[Path]:
    """The files of SQLite that all runs share."""
    connections: list[Any] = [
        instance.event_log_storage.index_connection,  # type: ignore[attr-defined]
        instance.run_storage.connect,  # type: ignore[attr-defined]
    ]
    if instance.schedule_storage is not None:
        connections.append(instance.schedule_storage.connect)  # type: ignore[attr-defined]
    for connect in connections:
        with connect() as connection:
            if connection.dialect.name == "sqlite":
                yield Path(str(connection.engine.url.database))


def _count(condition: Any) -> Any:
    return sa.func.sum(sa.case((condition, 1), else_=0))


def _naive(moment: datetime) -> datetime:
    """As Dagster stores the time of an event: UTC, without saying so."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    return (items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK))
