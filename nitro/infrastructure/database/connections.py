"""The engine of this process. It is created when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, Pool, StaticPool, create_engine, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.event import listen
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import PoolProxiedConnection

from nitro.infrastructure.database import sqlite, tables
from nitro.infrastructure.database.drivers import synchronous_engine_for
from nitro.infrastructure.threads import ForkSafe, ForkSafeLock
from nitro.settings import Settings

IDLE_SECONDS = 1.0
"""Seconds for which a server connection may be idle before the next checkout pings it."""
LAST_USED_KEY = "nitro_used"
"""Key in the `info` of a connection: the monotonic time of its last checkin. A new connection has none."""

_LOOPBACK_ADDRESSES = ("127.0.0.1", "::1")


class _ProcessEngine(ForkSafe):
    """The engine of this process, and the connection pools that it inherited at a fork."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.writing_engine: Engine | None = None
        self.is_nitros = self.is_users = False
        self.lock = ForkSafeLock()
        self.inherited_pools: list[Pool] = []
        super().__init__()

    def _reset(self) -> None:
        """Replaces the pool and keeps a reference to the parent's: closing its connections would disturb the parent."""
        if self.engine is not None and not isinstance(self.engine.pool, StaticPool):
            self.inherited_pools.append(self.engine.pool)
            self.engine.dispose(close=False)


_process = _ProcessEngine()


def engine() -> Engine:
    """Returns the engine of this process: the engine given to `use_engine`, else an engine for `NITRO_DB_URL`."""
    if _process.engine is not None:
        return _process.engine
    with _process.lock:
        if _process.engine is None:
            _process.engine, _process.is_nitros = _create_engine(make_url(Settings.load().db_url)), True
        return _process.engine


def writing_engine() -> Engine:
    """Returns the engine of this process with the option that makes a transaction on SQLite begin as a writer."""
    own, writing = engine(), _process.writing_engine
    if writing is None or writing.pool is not own.pool:
        writing = _process.writing_engine = own.execution_options(**{sqlite.WRITES_OPTION: True})
    return writing


def use_engine(database: object) -> None:
    """Sets the database of this process.

    Args:
        database: an engine, an asynchronous engine, or a URL. An engine for SQLite gets Nitro's settings.

    Raises:
        DatabaseRefused: the database cannot be used; the message says why.
    """
    engine, is_nitros = synchronous_engine_for(database, _create_engine)
    reset()
    if engine.dialect.name == "sqlite":
        sqlite.configure_engine(engine)
    _process.engine, _process.is_nitros, _process.is_users = engine, is_nitros, True


def has_user_engine() -> bool:
    """Whether the engine was set by `use_engine`."""
    return _process.is_users


def reset() -> None:
    """Forgets the engine. Its connections are closed unless the engine is the user's own."""
    with _process.lock:
        if _process.engine is not None and _process.is_nitros:
            _process.engine.dispose()
        _process.engine = _process.writing_engine = None
        _process.is_nitros = _process.is_users = False
    tables.clear_cache()


def database_identity(url: URL) -> tuple[object, ...] | None:
    """Returns a key that is equal for equal databases, whatever the driver and the user; None for one in memory."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        return None if sqlite.is_in_memory(url) else (backend, str(Path(url.database or "").absolute()))
    host = url.host or url.query.get("host") or "localhost"
    return backend, "localhost" if host in _LOOPBACK_ADDRESSES else host, url.port or 5432, url.database


def is_same_database(one: Engine, other: Engine) -> bool:
    """Whether two engines connect to the same database."""
    return one.pool is other.pool or (database_identity(one.url) == database_identity(other.url) is not None)


def create_tables(*, entities: bool = True) -> None:
    """Creates the missing tables, and upgrades older tables of Nitro. Several processes can call it at once.

    Args:
        entities: whether to create the tables of all declared classes too.
    """
    with table_creation_connection() as connection:
        tables.create_missing(connection, entities=entities)


@contextmanager
def table_creation_connection() -> Iterator[Connection]:
    """Opens a connection to create tables with. It sees tables that were committed while it waited for a lock."""
    with engine().connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.execution_options(**{sqlite.WRITES_OPTION: True, sqlite.SKIP_TABLES_OPTION: True})
        else:
            connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({tables.ADVISORY_LOCK_ID})")
            yield connection


def _create_engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return sqlite.new_engine(url)
    engine = create_engine(url, max_overflow=-1)  # no limit: the worker's concurrency is the limit
    listen(engine, "checkin", _mark_used)
    listen(engine, "checkout", partial(_ping, engine.dialect))
    return engine


def _mark_used(_connection: Any, record: PoolProxiedConnection) -> None:
    record.info[LAST_USED_KEY] = monotonic()


def _ping(dialect: Dialect, connection: DBAPIConnection, record: PoolProxiedConnection, _proxy: object) -> None:
    """Pings a connection that has been idle; SQLAlchemy's `pool_pre_ping` would ping at each checkout.

    Raises:
        InvalidatePoolError: the connection is dead; the pool then opens a new one.
    """
    if monotonic() - record.info.get(LAST_USED_KEY, inf) > IDLE_SECONDS and not _is_alive(dialect, connection):
        raise InvalidatePoolError


def _is_alive(dialect: Dialect, connection: DBAPIConnection) -> bool:
    try:
        return dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error:
        return False
