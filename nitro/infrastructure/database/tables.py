"""Which tables the database has: all declared classes' are created on first use of SQLite."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Pool
from sqlalchemy.orm import Session
from sqlmodel import SQLModel

from nitro.infrastructure.database.binds import connection_of, home_of

# PostgreSQL: two processes that create at once would otherwise collide in its catalogue.
LOCK = 0x6E6974726F
CREATED = "nitro_tables"

_complete: WeakKeyDictionary[Pool, int] = WeakKeyDictionary()
_files: dict[str, int] = {}
"""The same of SQLite's files, which several engines may lead to."""

migrations: list[Callable[[Connection], None]] = []
"""What brings tables of an older version up to date, where missing ones have just been created."""


def are_complete(connection: Connection) -> bool:
    """Whether every class declared so far is known to have its table there."""
    count = len(SQLModel.metadata.tables)
    return _complete.get(connection.engine.pool) == count or _files.get(str(connection.engine.url.database)) == count


def note_complete(connection: Connection) -> None:
    """Remember that every class declared so far has its table there, committed."""
    _complete[connection.engine.pool] = len(SQLModel.metadata.tables)
    if connection.engine.url.database not in (None, "", ":memory:"):
        _files[str(connection.engine.url.database)] = len(SQLModel.metadata.tables)


def forget() -> None:
    """Know nothing of any database's tables any more."""
    _complete.clear()
    _files.clear()


def create_missing(connection: Connection) -> None:
    """Create the missing tables in the transaction of this connection, and bring older ones up to date."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
    SQLModel.metadata.create_all(connection)
    for migrate in migrations:
        migrate(connection)


def ensure_tables(session: Session) -> None:
    """Make sure that the declared classes have their tables, on SQLite, also for one declared a moment ago.

    What is missing while the session is in a transaction is created in it, and gone if it rolls back.
    """
    declared = len(SQLModel.metadata.tables)
    if session.info.get(CREATED) == declared:
        return
    home = home_of(session)
    if home is not None and home.dialect.name == "sqlite":
        connection = connection_of(session)
        if not are_complete(connection):
            create_missing(connection)
    session.info[CREATED] = declared
