"""The one engine of this process, made when it is first needed."""

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
"""Seconds of silence after which a connection to a server is asked whether it still stands."""
LAST_USED_KEY = "nitro_used"
"""In the `info` of a connection, when it was last used; a new one has none."""

_LOOPBACK_ADDRESSES = ("127.0.0.1", "::1")


class _ProcessEngine(ForkSafe):
    """The engine of this process, and the pools of its parents."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.is_nitros = self.is_users = False
        self.lock = ForkSafeLock()
        self.inherited_pools: list[Pool] = []
        super().__init__()

    def _reset(self) -> None:
        """Leave the parent's connections alone, and keep them: closing one would disturb the parent."""
        if self.engine is not None and not isinstance(self.engine.pool, StaticPool):
            self.inherited_pools.append(self.engine.pool)
            self.engine.dispose(close=False)


_process = _ProcessEngine()


def engine() -> Engine:
    """The engine of this process: the one given to `use_engine`, else one for `NITRO_DB_URL`."""
    if _process.engine is not None:
        return _process.engine
    with _process.lock:
        if _process.engine is None:
            _process.engine, _process.is_nitros = _create_engine(make_url(Settings.load().db_url)), True
        return _process.engine


def use_engine(given: object) -> None:
    """Make a database of the user's own the one of this process.

    Args:
        given: an engine, asynchronous ones too, or a URL; one of SQLite is set up like Nitro's.

    Raises:
        DatabaseRefused: it cannot be used; says why.
    """
    engine, made = synchronous_engine_for(given, _create_engine)
    reset()
    if engine.dialect.name == "sqlite":
        sqlite.configure_engine(engine)
    _process.engine, _process.is_nitros, _process.is_users = engine, made, True


def has_user_engine() -> bool:
    """Whether the database was given to `use_engine`."""
    return _process.is_users


def reset() -> None:
    """Forget the engine and close its connections, unless it is the user's own."""
    with _process.lock:
        if _process.engine is not None and _process.is_nitros:
            _process.engine.dispose()
        _process.engine, _process.is_nitros, _process.is_users = None, False, False
    tables.clear_cache()


def database_identity(url: URL) -> tuple[object, ...] | None:
    """What tells a database from another, whatever driver and user; None for one that lives in memory."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        return None if sqlite.is_in_memory(url) else (backend, str(Path(url.database or "").absolute()))
    host = url.host or url.query.get("host") or "localhost"
    return backend, "localhost" if host in _LOOPBACK_ADDRESSES else host, url.port or 5432, url.database


def is_same_database(one: Engine, other: Engine) -> bool:
    """Whether two engines lead to one database."""
    return one.pool is other.pool or (database_identity(one.url) == database_identity(other.url) is not None)


def create_tables(*, entities: bool = True) -> None:
    """Create the tables that the database lacks, and bring Nitro's up to date; safe in many processes at once.

    Args:
        entities: those of every declared class too, not only Nitro's.
    """
    with table_creation_connection() as connection:
        tables.create_missing(connection, entities=entities)


@contextmanager
def table_creation_connection() -> Iterator[Connection]:
    """A connection to create tables with, which sees what others have created while it waited for them."""
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
    made = create_engine(url, max_overflow=-1)  # a worker's concurrency is its limit
    listen(made, "checkin", _mark_used)
    listen(made, "checkout", partial(_ping, made.dialect))
    return made


def _mark_used(_connection: Any, record: PoolProxiedConnection) -> None:
    record.info[LAST_USED_KEY] = monotonic()


def _ping(dialect: Dialect, connection: DBAPIConnection, record: PoolProxiedConnection, _proxy: object) -> None:
    """Ask a connection whether it still stands, if it has been silent; SQLAlchemy's `pool_pre_ping` asks each time.

    Raises:
        InvalidatePoolError: it does not, so that the pool connects anew.
    """
    if monotonic() - record.info.get(LAST_USED_KEY, inf) > IDLE_SECONDS and not _is_alive(dialect, connection):
        raise InvalidatePoolError


def _is_alive(dialect: Dialect, connection: DBAPIConnection) -> bool:
    try:
        return dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error:
        return False
