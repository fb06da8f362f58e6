"""Which tables the database has: Nitro's own, and those of all declared classes, which SQLite gets on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Executable, MetaData, Pool, Table, event, inspect
from sqlalchemy.orm import Session
from sqlmodel import SQLModel

from nitro.infrastructure.database import statements
from nitro.infrastructure.database.binds import connection_of, nitro_bind_of
from nitro.infrastructure.hooks import Hooks

# PostgreSQL: two processes that create at once would otherwise collide in its catalogue.
ADVISORY_LOCK_ID = 0x6E6974726F
TABLES_CREATED_KEY = "nitro_tables"

nitro_metadata = MetaData()
"""Nitro's tables: apart from the user's, so that nothing which is done with those is done with these."""

table_upgrades: Hooks[Callable[[Connection], Sequence[Executable]]] = Hooks()
"""Each gives what is to be executed for Nitro's tables to be there in this version; nothing when they are."""

current_pools: WeakKeyDictionary[Pool, bool] = WeakKeyDictionary()
"""Databases whose Nitro tables have been seen to be there, in a version that this library can use."""

text_encodings: set[str] = set()
"""Python's names of the encodings that a text must have to be stored; none as long as no database says so."""

_complete_pools: WeakKeyDictionary[Pool, int] = WeakKeyDictionary()
_complete_files: dict[str, int] = {}
"""The same of SQLite's files, which several engines may lead to."""

_declared_count = 0
"""Counts up with each table that is declared, also in the place of one that was removed."""


@event.listens_for(Table, "after_parent_attach")
def _count_declaration(_table: Table, metadata: MetaData) -> None:
    global _declared_count  # noqa: PLW0603  # one declaration after another, in this process
    if metadata is nitro_metadata or metadata is SQLModel.metadata:
        _declared_count += 1


def declaration_count() -> int:
    """A number that no later declaration leaves as it is."""
    return _declared_count


def is_complete(connection: Connection) -> bool:
    """Whether every class declared so far is known to have its table there."""
    return _declared_count in (
        _complete_pools.get(connection.engine.pool),
        _complete_files.get(str(connection.engine.url.database)),
    )


def mark_complete(connection: Connection, seen: int) -> None:
    """Remember that every class declared until a moment has its table there, committed.

    Args:
        seen: what `declaration_count()` gave at that moment.
    """
    _complete_pools[connection.engine.pool] = seen
    if connection.engine.url.database not in (None, "", ":memory:"):
        _complete_files[str(connection.engine.url.database)] = seen


def clear_cache() -> None:
    """Know nothing of any database's tables any more."""
    _complete_pools.clear()
    _complete_files.clear()
    set_schema(None)
    current_pools.clear()
    text_encodings.clear()


def set_schema(schema: str | None) -> None:
    """Have all statements look for Nitro's tables in this schema, whatever the search path of a connection.

    It is part of the tables themselves, because the one database of a process has them in one place, and a map from
    schema to schema would be applied anew at each execution.
    """
    if all(table.schema == schema for table in nitro_metadata.tables.values()):
        return
    for table in nitro_metadata.tables.values():
        table.schema = schema
    current_pools.clear()
    statements.clear_cache()


def is_missing_tables(connection: Connection) -> bool:
    """Whether tables are missing or outdated, by reads alone, which on SQLite wait for nobody."""
    return bool(_missing_tables(connection) or any(upgrade(connection) for upgrade in table_upgrades))


def create_missing(connection: Connection, *, entities: bool = True) -> None:
    """Create the missing tables in the transaction of this connection, and bring older ones up to date.

    Args:
        entities: those of the declared classes too, not only Nitro's.
    """
    if entities:
        SQLModel.metadata.create_all(connection, tables=_creatable_tables(connection))
    for upgrade in table_upgrades:
        for statement in upgrade(connection):
            connection.execute(statement)


def ensure_tables(session: Session) -> None:
    """Make sure that the declared classes have their tables, on SQLite, also for one declared a moment ago.

    What is missing while the session is in a transaction is created in it, and gone if it rolls back.
    """
    seen = _declared_count
    if session.info.get(TABLES_CREATED_KEY) == seen:
        return
    home = nitro_bind_of(session)
    if home is not None and home.dialect.name == "sqlite":
        connection = connection_of(session)
        if not is_complete(connection):
            create_missing(connection)
    session.info[TABLES_CREATED_KEY] = seen


def _missing_tables(connection: Connection) -> list[Table]:
    """The declared classes' tables that are not there."""
    seen, there = inspect(connection), {}
    for schema in {connection.schema_for_object(table) for table in _creatable_tables(connection)}:
        names = (*seen.get_table_names(schema), *seen.get_view_names(schema))
        there[schema] = {name.lower() for name in names}
    tables = _creatable_tables(connection)
    return [table for table in tables if table.name.lower() not in there[connection.schema_for_object(table)]]


def _creatable_tables(connection: Connection) -> list[Table]:
    """The declared classes' tables; on SQLite those that are in no schema, or in one that is attached."""
    tables = list(SQLModel.metadata.tables.values())
    if connection.dialect.name != "sqlite":
        return tables
    attached = {None, *inspect(connection).get_schema_names()}
    return [table for table in tables if connection.schema_for_object(table) in attached]
