"""Versions of the outbox's tables: brought up to date by `nitro init`, on SQLite by themselves.

From version 4 on a table only gains columns and indexes, and says which is the oldest version whose library can use it:
a process that is older than its tables goes on working, so that two releases can run side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from sqlalchemy import (
    Connection,
    Executable,
    MetaData,
    Table,
    create_mock_engine,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateSchema, DropIndex
from sqlmodel import SQLModel

from nitro.errors import OutboxElsewhere, OutboxOutdated
from nitro.infrastructure.database import (
    create_missing,
    current_pools,
    engine,
    nitro_metadata,
    set_schema,
    table_creation_connection,
    table_upgrades,
)
from nitro.infrastructure.outbox import texts
from nitro.infrastructure.outbox.schema import schema_versions

VERSION = 4
USABLE_FROM = 4
"""The oldest version whose library can use tables of this one."""
UNKNOWN_VERSION = 0
"""In place of a version: the tables are there, and no row says of which they are."""

UPGRADE_STEPS: dict[int, tuple[str, ...]] = {
    2: (
        "DROP INDEX ix_nitro_delivery_open",
        "CREATE INDEX ix_nitro_delivery_open ON nitro_delivery (state, due_at, emission) WHERE closed_at IS NULL",
    ),
    3: (
        "ALTER TABLE nitro_emission ADD COLUMN story TEXT",
        "ALTER TABLE nitro_delivery ADD COLUMN history TEXT",
        "ALTER TABLE nitro_delivery ADD COLUMN replayed_at FLOAT",
        "CREATE INDEX ix_nitro_delivery_replayed ON nitro_delivery (replayed_at) WHERE replayed_at IS NOT NULL",
        "CREATE INDEX ix_nitro_delivery_dead ON nitro_delivery (emission) WHERE state = 'dead'",
        "CREATE INDEX ix_nitro_emission_root ON nitro_emission (root) WHERE root IS NOT NULL",
    ),
    4: (
        "ALTER TABLE nitro_schema ADD COLUMN usable_from SMALLINT NOT NULL DEFAULT 4",
        (
            "CREATE INDEX ix_nitro_delivery_expiring ON nitro_delivery (expires_at)"
            " WHERE closed_at IS NULL AND expires_at IS NOT NULL"
        ),
        "ALTER TABLE nitro_delivery ADD COLUMN due_since FLOAT",
        "CREATE INDEX ix_nitro_delivery_closed ON nitro_delivery (closed_at) WHERE closed_at IS NOT NULL",
    ),
}
"""SQL that leads to each version from the one before; version 1 is what was first created. Later ones only add."""

_SCHEMAS_QUERY = """
SELECT n.nspname, bool_or(pg_catalog.pg_table_is_visible(c.oid)) AS visible
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = ANY(:names) AND c.relkind IN ('r', 'p') AND has_schema_privilege(n.oid, 'USAGE')
GROUP BY n.nspname ORDER BY n.nspname
"""


SCHEMA_OPTION = "nitro_into"
"""Execution option of a connection: the schema to create the tables in."""


def init(*, entities: bool = False, into: str | None = None) -> None:
    """Create the missing tables, and bring older ones up to date; what `nitro init` does.

    Args:
        entities: those of every declared class too.
        into: the schema of PostgreSQL for Nitro's, which is created as well; else the first of the search path.

    Raises:
        OutboxOutdated: they are of a later version than this library can use.
        OutboxElsewhere: they are in another schema already.
    """
    with table_creation_connection() as connection:
        for statement in _use_schema(connection, into):
            connection.execute(statement)
        create_missing(connection, entities=entities)
        check_version(connection)


def init_script(*, entities: bool = False, into: str | None = None) -> list[str]:
    """The SQL that `init` would execute now; for an empty database on SQLite, which is created by looking at it.

    Raises:
        OperationalError: the database is away.
        OutboxElsewhere: the tables are in another schema already.
    """
    with nullcontext() if engine().dialect.name == "sqlite" else engine().connect() as connection:
        changes = list(_create_statements(SQLModel.metadata, SQLModel.metadata.sorted_tables)) if entities else []
        if connection is None:
            changes += [*_create_statements(nitro_metadata, nitro_metadata.sorted_tables), _version_insert()]
        else:
            changes += [*_use_schema(connection, into), *upgrade_statements(connection)]
    return [str(_compiled_statement(each)).strip() for each in changes]


def upgrade_statements(connection: Connection) -> list[Executable]:
    """What is to be executed for the tables to be there in this version; found out by reads alone."""
    options = connection.get_execution_options()
    set_schema(options.get(SCHEMA_OPTION) or _schema_of_tables(connection) or _default_schema(connection))
    there = _existing_tables(connection)
    found = _stored_version(connection, there)
    if found is not None and found > VERSION:
        return []
    created = _create_statements(
        nitro_metadata, [table for table in nitro_metadata.sorted_tables if table.name not in there]
    )
    if found is None:
        return [*created, _version_insert()]
    if found == UNKNOWN_VERSION:
        known = [table for table in nitro_metadata.sorted_tables if table.name in there]
        return [*created, *_missing_columns_and_indexes(connection, known), _version_insert()]
    return [*created, *_upgrade_steps(connection, found)]


def ensure_current() -> None:
    """See once for each database that its tables are there, in a version that this library can use.

    Raises:
        OutboxOutdated: they are not; says what to do.
        OutboxElsewhere: they are in several schemas.
    """
    if engine().pool not in current_pools:
        with engine().begin() as connection:
            check_version(connection)


def check_version(connection: Connection) -> None:
    """See the same in the transaction of this connection.

    Raises:
        OutboxOutdated: they are not; says what to do.
        OutboxElsewhere: they are in several schemas.
    """
    pool = connection.engine.pool
    if pool in current_pools:
        return
    set_schema(_schema_of_tables(connection))
    texts.read_encodings(connection)
    connection.engine.clear_compiled_cache()  # in which they may be elsewhere
    there = _existing_tables(connection)
    found = _stored_version(connection, there)
    lacking = [] if found is None else sorted(nitro_metadata.tables.keys() - there)
    if lacking or not _is_usable(connection, found):
        raise OutboxOutdated(_database_url(connection), found, VERSION, lacking)
    current_pools[pool] = True


def _is_usable(connection: Connection, found: int | None) -> bool:
    """Whether this library can use tables of that version; later ones say so themselves."""
    if found is None or found <= VERSION:
        return found == VERSION
    return (connection.scalar(select(func.max(schema_versions.c.usable_from))) or found) <= VERSION


def _stored_version(connection: Connection, there: set[str]) -> int | None:
    """Of which version the tables are; None where there are none."""
    if not there:
        return None
    found = connection.scalar(select(func.max(schema_versions.c.version))) if schema_versions.name in there else None
    return found or UNKNOWN_VERSION


def _existing_tables(connection: Connection) -> set[str]:
    return nitro_metadata.tables.keys() & set(inspect(connection).get_table_names(schema_versions.schema))


def _schema_of_tables(connection: Connection) -> str | None:
    """The schema that the tables are in: the one that the search path leads to, else the only one.

    Raises:
        OutboxElsewhere: there are several.
    """
    found = _schemas_with_tables(connection)
    homes = [name for name, visible in found.items() if visible] or list(found)
    if len(homes) > 1:
        raise OutboxElsewhere(_database_url(connection), homes)
    return homes[0] if homes else None


def _schemas_with_tables(connection: Connection) -> dict[str, bool]:
    """The schemas that have some of the tables, and whether the search path leads there."""
    if connection.dialect.name != "postgresql":
        return {}
    return {
        row.nspname: row.visible
        for row in connection.execute(text(_SCHEMAS_QUERY), {"names": list(nitro_metadata.tables)})
    }


def _default_schema(connection: Connection) -> str | None:
    """Where a table is created that names no schema."""
    return connection.scalar(select(func.current_schema())) if connection.dialect.name == "postgresql" else None


def _use_schema(connection: Connection, into: str | None) -> list[Executable]:
    """Have the tables created in this schema; what is to be executed for it to be there.

    Raises:
        OutboxElsewhere: the search path leads to tables in another one.
    """
    if into is None:
        return []
    homes = [name for name, visible in _schemas_with_tables(connection).items() if visible]
    if homes and into not in homes:
        raise OutboxElsewhere(_database_url(connection), homes, into)
    connection.execution_options(**{SCHEMA_OPTION: into})
    return [] if inspect(connection).has_schema(into) else [CreateSchema(into)]


def _create_statements(metadata: MetaData, tables: Sequence[Table]) -> list[Executable]:
    """What creates these tables, with their indexes and comments."""
    made: list[Executable] = []
    mock = create_mock_engine(engine().url, lambda statement, *_, **__: made.append(statement))
    metadata.create_all(mock, tables=tables, checkfirst=False)
    return made


def _upgrade_steps(connection: Connection, found: int) -> Iterator[Executable]:
    if found == VERSION:
        return
    if schema_versions.schema is not None:
        home = connection.dialect.identifier_preparer.quote(schema_versions.schema)
        yield text(f"SET LOCAL search_path TO {home}")
    for version in range(found + 1, VERSION + 1):
        yield from map(text, UPGRADE_STEPS[version])
    yield update(schema_versions).values(version=VERSION, usable_from=USABLE_FROM)


def _version_insert() -> Executable:
    return insert(schema_versions).values(version=VERSION, usable_from=USABLE_FROM)


def _missing_columns_and_indexes(connection: Connection, tables: Sequence[Table]) -> Iterator[Executable]:
    """What such tables lack that were made by hand: of which version they are, nobody has written down."""
    seen, dialect = inspect(connection), connection.dialect
    for table in tables:
        columns = {column["name"] for column in seen.get_columns(table.name, table.schema)}
        for column in table.columns:
            if column.name not in columns:
                name = dialect.identifier_preparer.format_table(table)
                yield text(f"ALTER TABLE {name} ADD COLUMN {CreateColumn(column).compile(dialect=dialect)}")
        indexes = {each["name"]: each["column_names"] for each in seen.get_indexes(table.name, table.schema)}
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            if indexes.get(index.name) != [column.name for column in index.columns]:
                yield from [DropIndex(index)] if index.name in indexes else []
                yield CreateIndex(index)


def _compiled_statement(statement: Executable) -> Any:
    compiled: Any = statement
    return compiled.compile(dialect=engine().dialect, compile_kwargs={"literal_binds": True})


def _database_url(connection: Connection) -> str:
    return connection.engine.url.render_as_string()


table_upgrades.add(upgrade_statements)
