"""SQLite set up for several processes: durable, with a busy timeout, real transactions and savepoints."""

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

WRITES_OPTION = "nitro_writes"
"""Execution option of a connection: its transactions begin with BEGIN IMMEDIATE."""
SKIP_TABLES_OPTION = "nitro_as_it_is"
"""Execution option of a connection: its BEGIN creates no tables."""
FORK_GUARD_KEY = "nitro_doorway"
BUSY_SECONDS = 30
LOCK_POLL_SECONDS = 0.01
"""Seconds between two attempts to take the write lock, under gevent, where SQLite itself must not wait."""
FORK_WAIT_SECONDS = 10.0
"""Seconds that a fork waits for the transactions of other threads to end."""


def new_engine(url: URL) -> Engine:
    """Returns an engine for a URL: of the file's absolute path, or of a temporary file for a database in memory."""
    if is_in_memory(url):
        return _temporary_engine()
    if url.database and not url.database.startswith("file:"):
        url = url.set(database=str(Path(url.database).absolute()))
    return configure_engine(create_engine(url, max_overflow=-1))


def _temporary_engine() -> Engine:
    """Returns an engine for a temporary file, which is deleted at the latest when this process ends.

    A database in memory has a single connection, on which a read would end the transaction of another thread. A file
    allows several connections. synchronous=OFF is enough, as this file need not survive a power failure.
    """
    folder = mkdtemp(prefix="nitro-")
    engine = configure_engine(
        create_engine(URL.create("sqlite", database=str(Path(folder, "passing.db"))), max_overflow=-1)
    )
    event.listen(engine, "connect", lambda driver, _record: driver.execute("PRAGMA synchronous=OFF"))
    finalize(engine, _remove_folder, folder, os.getpid())
    return engine


def _remove_folder(folder: str, owner_pid: int) -> None:
    """Deletes the folder, unless this is a forked child: the parent still uses it."""
    if os.getpid() == owner_pid:
        rmtree(folder, ignore_errors=True)


def configure_engine(engine: Engine) -> Engine:
    """Sets an engine up, and returns it: new connections get Nitro's settings, transactions a real BEGIN.

    With the execution option `WRITES_OPTION` a transaction begins with BEGIN IMMEDIATE, which takes the write lock:
    upgrading a read lock later fails at once with "database is locked".
    """
    if not event.contains(engine, "connect", _configure_connection):
        if not is_in_memory(engine.url):
            engine.dispose()  # closes connections that were opened without these settings
            _fork_guard.watch_connections(engine)
        event.listen(engine, "connect", _configure_connection)
        event.listen(engine, "begin", _on_begin)
    return engine


class _ForkGuard(ForkSafe):
    """A guard that lets a process fork only while none of its SQLite connections is open.

    SQLite keeps the locks of a process in its memory. A child would inherit locks that no thread of it releases: it
    could not write any more, or would believe to hold a lock that it does not (SQLite, How To Corrupt, 2.6).
    """

    def __init__(self) -> None:
        self._engines: WeakSet[Engine] = WeakSet()
        super().__init__()
        os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork_in_parent)

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._open_counts: Counter[int] = Counter()
        self._forking_thread: int | None = None

    def watch_connections(self, engine: Engine) -> None:
        """Counts the open connections of an engine, by thread."""
        with self._condition:
            self._engines.add(engine)
        event.listen(engine, "do_connect", lambda _dialect, record, _args, _options: self._check_out(record))
        event.listen(engine, "checkout", lambda _driver, record, _proxy: self._check_out(record))
        event.listen(engine, "checkin", self._check_in)

    def _check_out(self, record: Any) -> None:
        if FORK_GUARD_KEY in record.info:
            return
        thread_id = threading.get_ident()
        with self._condition:
            self._condition.wait_for(lambda: self._forking_thread in (None, thread_id), FORK_WAIT_SECONDS)
            record.info[FORK_GUARD_KEY] = thread_id
            self._open_counts[thread_id] += 1

    def _check_in(self, _driver: object, record: Any) -> None:
        with self._condition:
            self._open_counts[record.info.pop(FORK_GUARD_KEY, 0)] -= 1
            self._condition.notify_all()

    def _before_fork(self) -> None:
        """Waits for the transactions of other threads, then closes idle connections."""
        with self._condition:
            engines = list(self._engines)
            if not engines:
                return
            self._forking_thread = forking_thread = threading.get_ident()
            self._condition.wait_for(
                lambda: (
                    not any(count > 0 for thread_id, count in self._open_counts.items() if thread_id != forking_thread)
                ),
                FORK_WAIT_SECONDS,
            )
        for engine in engines:
            engine.dispose()

    def _after_fork_in_parent(self) -> None:
        with self._condition:
            self._forking_thread = None
            self._condition.notify_all()


def is_in_memory(url: URL) -> bool:
    """Whether a URL is of a database in memory, which ends with its connection."""
    return (
        url.database in (None, "", ":memory:")
        or url.query.get("mode") == "memory"
        or str(url.database).startswith("file::memory:")
    )


def _configure_connection(driver: sqlite3.Connection, _record: object) -> None:
    driver.isolation_level = None
    driver.create_function("lower", 1, _lower, deterministic=True)
    driver.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    _enable_wal(driver)
    driver.execute("PRAGMA synchronous=FULL")
    driver.execute("PRAGMA foreign_keys=ON")


def _enable_wal(driver: sqlite3.Connection) -> None:
    """Switches to WAL. Retries itself, because SQLite does not apply busy_timeout to this lock."""
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
    """Returns the lower case of all Unicode letters; SQLite's own `lower` knows ASCII only."""
    return None if value is None else str(value).lower()


def _on_begin(connection: Connection) -> None:
    if _driver_connection(connection).in_transaction:
        return
    options = connection.get_execution_options()
    if not (options.get(SKIP_TABLES_OPTION) or tables.is_complete(connection)):
        _ensure_tables(connection)
    if options.get(WRITES_OPTION):
        _begin_immediate(connection)
    else:
        connection.exec_driver_sql("BEGIN DEFERRED")


def _begin_immediate(connection: Connection) -> None:
    """Sends BEGIN IMMEDIATE, which takes the write lock.

    Where `threading` is patched, another greenlet of this thread may hold the lock, and could not release it while
    SQLite waits in C. So busy_timeout is 0 there, and the wait is a `time.sleep`, which lets the greenlet run.
    """
    if not greenlets.is_threading_patched():
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    driver, deadline = _driver_connection(connection), time.monotonic() + BUSY_SECONDS
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except OperationalError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOCK_POLL_SECONDS)
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")


def _ensure_tables(connection: Connection) -> None:
    """Creates missing tables; takes no lock if there are none, as another process may hold the write lock for long."""
    declared_count = tables.declaration_count()
    if tables.is_missing_tables(connection):
        _create_tables(connection)
    tables.mark_complete(connection, declared_count)


def _create_tables(connection: Connection) -> None:
    """Creates missing tables in a transaction of their own, so that no later rollback drops them."""
    _begin_immediate(connection)
    try:
        tables.create_missing(connection)
    except BaseException:
        if _driver_connection(connection).in_transaction:  # SQLAlchemy may have ended it after a failed statement
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def send_begin(connection: Connection) -> None:
    """Sends BEGIN before a savepoint; the `sqlite3` driver of the user's engine would send it at the first write."""
    if connection.dialect.name == "sqlite" and not _driver_connection(connection).in_transaction:
        connection.exec_driver_sql("BEGIN")


def _driver_connection(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert driver is not None
    return cast(sqlite3.Connection, driver)


_fork_guard = _ForkGuard()
