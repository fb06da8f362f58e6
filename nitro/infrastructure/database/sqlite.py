"""SQLite as several processes need it: durable, waiting for its turn, with real transactions and savepoints."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, cast
from weakref import WeakSet, finalize

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from nitro.infrastructure import greenlets
from nitro.infrastructure.database import tables
from nitro.infrastructure.threads import ForkSafe

WRITES = "nitro_writes"
AS_IT_IS = "nitro_as_it_is"
"""Execution option of a connection for which nothing is created."""
DOORWAY = "nitro_doorway"
BUSY_SECONDS = 30
LOOK_AGAIN = 0.01
"""Seconds between two looks at whether the write lock is free, where SQLite itself must not wait."""
FORK_SECONDS = 10.0
"""Seconds that a fork waits for transactions of other threads to end."""


def connect(url: URL) -> Engine:
    """An engine for this URL; a file is pinned to its absolute path, for memory there is one that ends with us."""
    if in_memory(url):
        return _passing()
    if url.database and not url.database.startswith("file:"):
        url = url.set(database=str(Path(url.database).absolute()))
    return prepare(create_engine(url, max_overflow=-1))


def _passing() -> Engine:
    """An engine for a database that lasts as long as this process at most.

    A database in memory has one connection, on which a read would end the transaction of another thread; a file has
    as many as are wanted, and this one need not survive a power failure.
    """
    folder = mkdtemp(prefix="nitro-")
    engine = prepare(create_engine(URL.create("sqlite", database=str(Path(folder, "passing.db"))), max_overflow=-1))
    event.listen(engine, "connect", lambda driver, _record: driver.execute("PRAGMA synchronous=OFF"))
    finalize(engine, _remove, folder, os.getpid())
    return engine


def _remove(folder: str, owner: int) -> None:
    """Not by a forked child, whose parent still uses it."""
    if os.getpid() == owner:
        rmtree(folder, ignore_errors=True)


def prepare(engine: Engine) -> Engine:
    """The same engine; every new connection gets Nitro's settings, every transaction a real BEGIN.

    A transaction whose connection has the execution option `WRITES` takes the write lock at once
    (BEGIN IMMEDIATE): upgrading a read lock later fails at once with "database is locked".
    """
    if not event.contains(engine, "connect", _configure):
        if not in_memory(engine.url):
            engine.dispose()  # connections that were made without these settings
            _doorway.guard(engine)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
    return engine


class _Doorway(ForkSafe):
    """Lets a process fork only while none of its SQLite connections is open.

    SQLite keeps the locks of a process in its memory. A child would inherit them, with nobody to ever give them back:
    it could not write any more, or believe to hold what it does not (SQLite, How To Corrupt, 2.6).
    """

    def __init__(self) -> None:
        self._engines: WeakSet[Engine] = WeakSet()
        super().__init__()
        os.register_at_fork(before=self._close, after_in_parent=self._open)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[int] = Counter()
        self._forking: int | None = None

    def guard(self, engine: Engine) -> None:
        """Count the connections of an engine in and out."""
        with self._changed:
            self._engines.add(engine)
        event.listen(engine, "do_connect", lambda _dialect, record, _args, _options: self._enter(record))
        event.listen(engine, "checkout", lambda _driver, record, _proxy: self._enter(record))
        event.listen(engine, "checkin", self._leave)

    def _enter(self, record: Any) -> None:
        if DOORWAY in record.info:
            return
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._forking in (None, me), FORK_SECONDS)
            record.info[DOORWAY] = me
            self._inside[me] += 1

    def _leave(self, _driver: object, record: Any) -> None:
        with self._changed:
            self._inside[record.info.pop(DOORWAY, 0)] -= 1
            self._changed.notify_all()

    def _close(self) -> None:
        """Wait for the transactions of other threads, then close what is idle."""
        with self._changed:
            engines = list(self._engines)
            if not engines:
                return
            self._forking = me = threading.get_ident()
            self._changed.wait_for(lambda: not any(n > 0 for who, n in self._inside.items() if who != me), FORK_SECONDS)
        for engine in engines:
            engine.dispose()

    def _open(self) -> None:
        with self._changed:
            self._forking = None
            self._changed.notify_all()


def in_memory(url: URL) -> bool:
    """Whether the database lives in memory, and ends with its connection."""
    return (
        url.database in (None, "", ":memory:")
        or url.query.get("mode") == "memory"
        or str(url.database).startswith("file::memory:")
    )


def _configure(driver: sqlite3.Connection, _record: object) -> None:
    driver.isolation_level = None
    driver.create_function("lower", 1, _lower, deterministic=True)
    driver.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    _write_ahead(driver)
    driver.execute("PRAGMA synchronous=FULL")
    driver.execute("PRAGMA foreign_keys=ON")


def _write_ahead(driver: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite does not apply its busy timeout to this one lock."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            driver.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _lower(value: object) -> str | None:
    """`lower` for all of Unicode; SQLite's own knows ASCII only."""
    return None if value is None else str(value).lower()


def _begin(connection: Connection) -> None:
    if _driver(connection).in_transaction:
        return
    options = connection.get_execution_options()
    if not (options.get(AS_IT_IS) or tables.are_complete(connection)):
        _see_to_tables(connection)
    if options.get(WRITES):
        _begin_writing(connection)
    else:
        connection.exec_driver_sql("BEGIN DEFERRED")


def _begin_writing(connection: Connection) -> None:
    """Take the write lock, which a greenlet of this thread may hold: it could not give it back while SQLite waits."""
    if not greenlets.are_threads():
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    driver, deadline = _driver(connection), time.monotonic() + BUSY_SECONDS
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except OperationalError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOOK_AGAIN)
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")


def _see_to_tables(connection: Connection) -> None:
    """Create what is missing; when nothing is, no lock is taken: another process may be writing for long."""
    seen = tables.declared()
    if tables.are_missing(connection):
        _create_tables(connection)
    tables.note_complete(connection, seen)


def _create_tables(connection: Connection) -> None:
    """Create what is missing in a transaction of its own, so that no later rollback takes it away."""
    _begin_writing(connection)
    try:
        tables.create_missing(connection)
    except BaseException:
        if _driver(connection).in_transaction:  # which SQLAlchemy ends where a statement has failed
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def begin_for_real(connection: Connection) -> None:
    """Send the BEGIN that an engine without this set-up leaves to the first write: a savepoint needs it."""
    if connection.dialect.name == "sqlite" and not _driver(connection).in_transaction:
        connection.exec_driver_sql("BEGIN")


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert driver is not None
    return cast(sqlite3.Connection, driver)


_doorway = _Doorway()
