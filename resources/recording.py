"""Many events recorded in a row, without a new engine for each statement."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING

import sqlalchemy as sa
from dagster._core.storage.event_log.sqlite.sqlite_event_log import (
    INDEX_SHARD_NAME,
    SqliteEventLogStorage,
)
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dagster as dg


@contextmanager
def kept_open(instance: dg.DagsterInstance) -> Iterator[None]:
    """Within, an event log in SQLite is written with few connections and compiled statements.

    Dagster makes an engine and a connection for every statement. SQLAlchemy then compiles it anew,
    and SQLite moves the whole log into the database whenever its last connection closes. Here each
    database keeps its engine, and the index, which has most of the statements, its connection. The
    UI sees a run's own database change only when it is closed, so that one is.

    A commit does not wait for the disk: should the machine lose power, the last events are lost,
    and what they tell of is found current and recorded by the next run. The runs, which are asked
    again and again while files are written, keep their engine too. Storages other than SQLite are
    left as they are, and those that are kept open already.
    """
    events, runs = instance.event_log_storage, instance.run_storage
    with ExitStack() as stack:
        if isinstance(events, SqliteEventLogStorage) and "_connect" not in vars(events):
            stack.enter_context(_events(events))
        if isinstance(runs, SqliteRunStorage) and "connect" not in vars(runs):
            stack.enter_context(_runs(runs))
        yield


@contextmanager
def _events(storage: SqliteEventLogStorage) -> Iterator[None]:
    connect, engines = storage._connect, dict[str, sa.Engine]()

    @contextmanager
    def reconnect(shard: str) -> Iterator[sa.Connection]:
        if shard not in engines:
            with connect(shard):  # makes the database if there is none
                pass
            engines[shard] = stack.enter_context(_engine(storage, shard))
        with storage._db_lock, engines[shard].begin() as connection:
            yield connection

    with ExitStack() as stack:
        stack.enter_context(replaced(storage, "_connect", reconnect))
        stack.enter_context(replaced(storage, "has_table", cache(storage.has_table)))
        yield


@contextmanager
def _runs(storage: SqliteRunStorage) -> Iterator[None]:
    engine = sa.create_engine(
        storage._conn_string,
        poolclass=sa.pool.NullPool,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS},
    )

    @contextmanager
    def reconnect() -> Iterator[sa.Connection]:
        with engine.begin() as connection:
            yield connection

    with engine.connect() as kept:  # so that no other is the last to close
        kept.execute(sa.text("PRAGMA schema_version"))  # SQLite counts it once it has read
        kept.rollback()
        with replaced(storage, "connect", reconnect):
            yield


@contextmanager
def replaced(of: object, name: str, function: object) -> Iterator[None]:
    """Within, ``of`` has another function of this name."""
    own = vars(of).get(name)
    setattr(of, name, function)
    try:
        yield
    finally:
        if own is None:  # it is its class's again
            delattr(of, name)
        else:
            setattr(of, name, own)


@contextmanager
def _engine(storage: SqliteEventLogStorage, shard: str) -> Iterator[sa.Engine]:
    stays_open = shard == INDEX_SHARD_NAME
    engine = sa.create_engine(
        storage.conn_string_for_shard(shard),
        poolclass=sa.pool.StaticPool if stays_open else sa.pool.NullPool,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )
    sa.event.listen(engine, "connect", _do_not_wait)
    try:
        yield engine
    finally:
        engine.dispose()


def _do_not_wait(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
