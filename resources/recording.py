"""Many events recorded in a row, without a new engine for each statement."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from threading import Event, Thread
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

    Dagster makes an engine, a connection and a transaction for every statement. SQLAlchemy then
    compiles it again, and SQLite checkpoints its write-ahead log when the last connection closes.
    Here each database keeps its engine, and the index, which has most of the statements,
    its connection; what is written within ``COMMIT_S`` is one transaction. The UI sees a run's own
    database change only when it is closed, so that one is closed with each transaction.

    A commit does not wait for the disk: should the machine lose power, the last events are lost,
    and what they tell of is found current and recorded by the next run. So are those that an
    error or an interruption takes back, because they were written within ``COMMIT_S`` before it.
    The runs, which are asked again and again while files are written, keep their engine too.
    Storages other than SQLite are left as they are, and those that are kept open already.
    """
    events, runs = instance.event_log_storage, instance.run_storage
    with ExitStack() as stack:
        if isinstance(events, SqliteEventLogStorage) and "_connect" not in vars(events):
            stack.enter_context(_events(events))
        if isinstance(runs, SqliteRunStorage) and "connect" not in vars(runs):
            stack.enter_context(_runs(runs))
        yield


COMMIT_S, GAP_S = 0.05, 0.005
"""Statements within the first are one transaction; for the second others can begin theirs."""


@contextmanager
def _events(storage: SqliteEventLogStorage) -> Iterator[None]:
    log = _EventLog(storage)
    committer = Thread(target=log.commit_repeatedly, daemon=True)
    with log.engines:
        try:
            with (
                replaced(storage, "_connect", log.connection),
                replaced(storage, "has_table", cache(storage.has_table)),
                replaced(storage, "_has_asset_key_col_on_connection", log.has_column),
            ):
                committer.start()
                yield
        finally:
            log.end()
            committer.join()
            log.commit()


class _EventLog:
    """The databases of an event log, each with an engine and the transaction under way.

    A run's database is never opened while the index is open: two processes that write to both could
    otherwise wait for each other.
    """

    def __init__(self, storage: SqliteEventLogStorage):
        self.engines = ExitStack()
        self._lock = storage._db_lock
        self._connect_anew = storage._connect
        self._make_engine = partial(_engine, storage)
        self._look_for_column = storage._has_asset_key_col_on_connection
        self._columns = dict[str, bool]()
        self._engine_of = dict[str, sa.Engine]()
        self._open = dict[str, sa.Connection]()
        self._failure: sa.exc.SQLAlchemyError | None = None  # of a commit, raised at the next use
        self._opened, self._ended = Event(), Event()

    @contextmanager
    def connection(self, shard: str) -> Iterator[sa.Connection]:
        """In the transaction under way, or in a new one; ``commit`` ends it."""
        if shard not in self._engine_of:
            with self._connect_anew(shard):  # makes the database if there is none
                pass
            self._engine_of[shard] = self.engines.enter_context(self._make_engine(shard))
        with self._lock:
            self._raise_failure()
            if shard not in self._open:
                if INDEX_SHARD_NAME in self._open:
                    self._commit()
                connection = self._open[shard] = self._engine_of[shard].connect()
                connection.begin()  # Dagster would begin one of its own, and commit it
                self._opened.set()
            try:
                yield self._open[shard]
            except BaseException:
                self._open[shard].rollback()
                raise

    def has_column(self, connection: sa.Connection, name: str) -> bool:
        """Asked for every event of an asset; the answer stays the same."""
        if name not in self._columns:
            self._columns[name] = self._look_for_column(connection, name)
        return self._columns[name]

    def commit(self) -> None:
        with self._lock:
            self._raise_failure()
            self._commit()

    def _commit(self) -> None:
        failures = []
        for shard in list(self._open):
            try:
                with self._open.pop(shard) as connection:  # closed, whatever becomes of the commit
                    connection.commit()
            except sa.exc.SQLAlchemyError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def commit_repeatedly(self) -> None:
        while not self._ended.is_set():
            self._opened.wait()
            self._opened.clear()
            self._ended.wait(COMMIT_S)
            with self._lock:
                try:
                    self._commit()
                except sa.exc.SQLAlchemyError as error:
                    self._failure = error
                self._ended.wait(GAP_S)

    def end(self) -> None:
        self._ended.set()
        self._opened.set()


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
