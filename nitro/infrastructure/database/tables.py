"""Tables of the database: Nitro's own, and those of all declared classes, which are created on SQLite at first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Executable, MetaData, Pool, Table, event, inspect
from sqlalchemy.orm import Session
from sqlmodel import SQLModel

from nitro.infrastructure.database import statements
from nitro.infrastructure.database.binds import connection_of, nitro_bind_of
from nitro.infrastructure.hooks import Hooks

# pg_advisory_xact_lock: without it two processes that create tables at once would collide in the catalogue.
ADVISORY_LOCK_ID = 0x6E6974726F
"""Key of the advisory lock under which PostgreSQL creates tables."""
TABLES_CREATED_KEY = "nitro_tables"
"""Key in the `info` of a session: the declaration count up to which its transaction has all tables."""

nitro_metadata = MetaData()
"""Nitro's tables, separate from the user's metadata, so that `create_all` and Alembic of the user leave them alone."""

table_upgrades: Hooks[Callable[[Connection], Sequence[Executable]]] = Hooks()
"""Functions that return the statements which bring Nitro's tables to this version; none if they are current."""

current_pools: WeakKeyDictionary[Pool, bool] = WeakKeyDictionary()
"""Pools of the databases whose Nitro tables exist, in a version that this library can use."""

text_encodings: set[str] = set()
"""Python's names of the encodings in which a text must be encodable to be stored; empty until a database sets it."""

_complete_pools: WeakKeyDictionary[Pool, int] = WeakKeyDictionary()
"""The declaration count up to which all classes have their tables, by pool."""
_complete_files: dict[str, int] = {}
"""The declaration count by SQLite file, as several engines may open one file."""

_declared_count = 0
"""Number of tables declared so far; a table that replaces a removed one counts too."""


@event.listens_for(Table, "after_parent_attach")
def _count_declaration(_table: Table, metadata: MetaData) -> None:
    global _declared_count  # noqa: PLW0603  # the count of this process
    if metadata is nitro_metadata or metadata is SQLModel.metadata:
        _declared_count += 1


def declaration_count() -> int:
    """Returns the number of declarations so far; each declaration raises it."""
    return _declared_count


def is_complete(connection: Connection) -> bool:
    """Whether all classes declared so far are known to have their tables in the database."""
    return _declared_count in (
        _complete_pools.get(connection.engine.pool),
        _complete_files.get(str(connection.engine.url.database)),
    )


def mark_complete(connection: Connection, count: int) -> None:
    """Records that all classes have their tables in the database, committed, up to a declaration count.

    Args:
        count: the result of `declaration_count()` before the tables were checked.
    """
    _complete_pools[connection.engine.pool] = count
    if connection.engine.url.database not in (None, "", ":memory:"):
        _complete_files[str(connection.engine.url.database)] = count


def clear_cache() -> None:
    """Forgets all that is known about the tables of databases."""
    _complete_pools.clear()
    _complete_files.clear()
    set_schema(None)
    current_pools.clear()
    text_encodings.clear()


def set_schema(schema: str | None) -> None:
    """Sets the schema of Nitro's tables, so that statements do not depend on the search path of a connection.

    The schema is set on the `Table` objects: a process has one database, and SQLAlchemy's `schema_translate_map`
    would be applied at each execution.
    """
    if all(table.schema == schema for table in nitro_metadata.tables.values()):
        return
    for table in nitro_metadata.tables.values():
        table.schema = schema
    current_pools.clear()
    statements.clear_cache()


def is_missing_tables(connection: Connection) -> bool:
    """Whether tables are missing or outdated. It only reads, so on SQLite it waits for no lock."""
    return bool(_missing_tables(connection) or any(upgrade(connection) for upgrade in table_upgrades))


def create_missing(connection: Connection, *, entities: bool = True) -> None:
    """Creates missing tables and upgrades older ones, in the transaction of a connection.

    Args:
        entities: whether to create the tables of the declared classes too.
    """
    if entities:
        SQLModel.metadata.create_all(connection, tables=_creatable_tables(connection))
    for upgrade in table_upgrades:
        for statement in upgrade(connection):
            connection.execute(statement)


def ensure_tables(session: Session) -> None:
    """Creates missing tables of the declared classes on SQLite, also of a class declared since the last check.

    They are created in the session's transaction: a rollback drops them.
    """
    count = _declared_count
    if session.info.get(TABLES_CREATED_KEY) == count:
        return
    bind = nitro_bind_of(session)
    if bind is not None and bind.dialect.name == "sqlite":
        connection = connection_of(session)
        if not is_complete(connection):
            create_missing(connection)
    session.info[TABLES_CREATED_KEY] = count


def _missing_tables(connection: Connection) -> list[Table]:
    """Returns the tables of declared classes that are missing."""
    inspector, names_by_schema = inspect(connection), {}
    for schema in {connection.schema_for_object(table) for table in _creatable_tables(connection)}:
        names = (*inspector.get_table_names(schema), *inspector.get_view_names(schema))
        names_by_schema[schema] = {name.lower() for name in names}
    tables = _creatable_tables(connection)
    return [table for table in tables if table.name.lower() not in names_by_schema[connection.schema_for_object(table)]]


def _creatable_tables(connection: Connection) -> list[Table]:
    """Returns the tables of declared classes; on SQLite only those without a schema, or in an attached one."""
    tables = list(SQLModel.metadata.tables.values())
    if connection.dialect.name != "sqlite":
        return tables
    schemas = {None, *inspect(connection).get_schema_names()}
    return [table for table in tables if connection.schema_for_object(table) in schemas]
