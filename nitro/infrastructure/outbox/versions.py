"""Versions of the outbox's tables: `nitro init` upgrades them; on SQLite the first use does.

From version 4 on, upgrades only add columns and indexes. The tables record the oldest library version that can use
them. So an older process goes on working with newer tables, and two releases can run side by side.
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
"""The oldest version whose library can use tables of version `VERSION`."""
UNKNOWN_VERSION = 0
"""Stands for the version of tables that exist without a row for their version."""

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
"""SQL that upgrades to each version from the previous one, from version 1 on."""

_SCHEMAS_QUERY = """
SELECT n.nspname, bool_or(pg_catalog.pg_table_is_visible(c.oid)) AS visible
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = ANY(:names) AND c.relkind IN ('r', 'p') AND has_schema_privilege(n.oid, 'USAGE')
GROUP BY n.nspname ORDER BY n.nspname
"""

SCHEMA_OPTION = "nitro_into"
"""Execution option of a connection that names the schema for new tables."""


def init(*, entities: bool = False, into: str | None = None) -> None:
    """Creates missing tables and upgrades older ones, for `nitro init`.

    Args:
        entities: whether to create the tables of every declared entity class too.
        into: the PostgreSQL schema of Nitro's tables, created if missing; by default the first of the search path.

    Raises:
        OutboxOutdated: the tables are of a later version than this library can use.
        OutboxElsewhere: the tables are in another schema already.
    """
    with table_creation_connection() as connection:
        for statement in _use_schema(connection, into):
            connection.execute(statement)
        create_missing(connection, entities=entities)
        check_version(connection)


def init_script(*, entities: bool = False, into: str | None = None) -> list[str]:
    """Returns the SQL that `init` would execute now.

    On SQLite it is the SQL for an empty database: to connect would create the file.

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
    """Returns the statements that create or upgrade the tables; it only reads the database."""
    options = connection.get_execution_options()
    set_schema(options.get(SCHEMA_OPTION) or _schema_of_tables(connection) or _default_schema(connection))
    existing = _existing_tables(connection)
    version = _stored_version(connection, existing)
    if version is not None and version > VERSION:
        return []
    create = _create_statements(
        nitro_metadata, [table for table in nitro_metadata.sorted_tables if table.name not in existing]
    )
    if version is None:
        return [*create, _version_insert()]
    if version == UNKNOWN_VERSION:
        unversioned = [table for table in nitro_metadata.sorted_tables if table.name in existing]
        return [*create, *_missing_columns_and_indexes(connection, unversioned), _version_insert()]
    return [*create, *_upgrade_steps(connection, version)]


def ensure_current() -> None:
    """Checks once for each database that its tables exist in a version that this library can use.

    Raises:
        OutboxOutdated: a table is missing, or the version does not fit.
        OutboxElsewhere: the tables are in several schemas.
    """
    if engine().pool not in current_pools:
        with engine().begin() as connection:
            check_version(connection)


def check_version(connection: Connection) -> None:
    """Checks the tables like `ensure_current`, in the transaction of this connection.

    Raises:
        OutboxOutdated: a table is missing, or the version does not fit.
        OutboxElsewhere: the tables are in several schemas.
    """
    pool = connection.engine.pool
    if pool in current_pools:
        return
    set_schema(_schema_of_tables(connection))
    texts.read_encodings(connection)
    connection.engine.clear_compiled_cache()  # compiled statements may name another schema
    existing = _existing_tables(connection)
    version = _stored_version(connection, existing)
    missing = [] if version is None else sorted(nitro_metadata.tables.keys() - existing)
    if missing or not _is_usable(connection, version):
        raise OutboxOutdated(_database_url(connection), version, VERSION, missing)
    current_pools[pool] = True


def _is_usable(connection: Connection, version: int | None) -> bool:
    """Whether this library can use tables of that version; later tables record the oldest version that can."""
    if version is None or version <= VERSION:
        return version == VERSION
    return (connection.scalar(select(func.max(schema_versions.c.usable_from))) or version) <= VERSION


def _stored_version(connection: Connection, existing: set[str]) -> int | None:
    """Returns the version of the tables; None when none of them exists."""
    if not existing:
        return None
    query = select(func.max(schema_versions.c.version))
    version = connection.scalar(query) if schema_versions.name in existing else None
    return version or UNKNOWN_VERSION


def _existing_tables(connection: Connection) -> set[str]:
    return nitro_metadata.tables.keys() & set(inspect(connection).get_table_names(schema_versions.schema))


def _schema_of_tables(connection: Connection) -> str | None:
    """Returns the schema of the tables: the one in the search path, else the only one.

    Raises:
        OutboxElsewhere: several schemas have the tables.
    """
    visible_by_schema = _schemas_with_tables(connection)
    schemas = [name for name, visible in visible_by_schema.items() if visible] or list(visible_by_schema)
    if len(schemas) > 1:
        raise OutboxElsewhere(_database_url(connection), schemas)
    return schemas[0] if schemas else None


def _schemas_with_tables(connection: Connection) -> dict[str, bool]:
    """Returns the schemas that have some of the tables, and for each whether it is in the search path."""
    if connection.dialect.name != "postgresql":
        return {}
    return {
        row.nspname: row.visible
        for row in connection.execute(text(_SCHEMAS_QUERY), {"names": list(nitro_metadata.tables)})
    }


def _default_schema(connection: Connection) -> str | None:
    """Returns the schema of new tables whose statement names none; None on SQLite."""
    return connection.scalar(select(func.current_schema())) if connection.dialect.name == "postgresql" else None


def _use_schema(connection: Connection, into: str | None) -> list[Executable]:
    """Sets the schema for new tables, and returns the statements that create it.

    Raises:
        OutboxElsewhere: the search path has the tables in another schema.
    """
    if into is None:
        return []
    schemas = [name for name, visible in _schemas_with_tables(connection).items() if visible]
    if schemas and into not in schemas:
        raise OutboxElsewhere(_database_url(connection), schemas, into)
    connection.execution_options(**{SCHEMA_OPTION: into})
    return [] if inspect(connection).has_schema(into) else [CreateSchema(into)]


def _create_statements(metadata: MetaData, tables: Sequence[Table]) -> list[Executable]:
    """Returns the statements that create these tables, with their indexes and comments."""
    statements: list[Executable] = []
    mock = create_mock_engine(engine().url, lambda statement, *_, **__: statements.append(statement))
    metadata.create_all(mock, tables=tables, checkfirst=False)
    return statements


def _upgrade_steps(connection: Connection, version: int) -> Iterator[Executable]:
    if version == VERSION:
        return
    if schema_versions.schema is not None:
        schema = connection.dialect.identifier_preparer.quote(schema_versions.schema)
        yield text(f"SET LOCAL search_path TO {schema}")
    for target in range(version + 1, VERSION + 1):
        yield from map(text, UPGRADE_STEPS[target])
    yield update(schema_versions).values(version=VERSION, usable_from=USABLE_FROM)


def _version_insert() -> Executable:
    return insert(schema_versions).values(version=VERSION, usable_from=USABLE_FROM)


def _missing_columns_and_indexes(connection: Connection, tables: Sequence[Table]) -> Iterator[Executable]:
    """Returns the statements that add missing columns and indexes to tables of unknown version."""
    inspector, dialect = inspect(connection), connection.dialect
    for table in tables:
        columns = {column["name"] for column in inspector.get_columns(table.name, table.schema)}
        for column in table.columns:
            if column.name not in columns:
                name = dialect.identifier_preparer.format_table(table)
                yield text(f"ALTER TABLE {name} ADD COLUMN {CreateColumn(column).compile(dialect=dialect)}")
        indexes = {each["name"]: each["column_names"] for each in inspector.get_indexes(table.name, table.schema)}
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
