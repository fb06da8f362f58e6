"""Versions of the outbox's tables: brought up to date by `nitro init`, on SQLite by themselves."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Pool, func, insert, inspect, select, update

from nitro.errors import OutboxOutdated
from nitro.infrastructure.database import engine, migrations
from nitro.infrastructure.outbox.tables import schema

VERSION = 4

STEPS: dict[int, tuple[str, ...]] = {
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
        "ALTER TABLE nitro_delivery ADD COLUMN due_since FLOAT",
        "CREATE INDEX ix_nitro_delivery_closed ON nitro_delivery (closed_at) WHERE closed_at IS NOT NULL",
    ),
}
"""SQL that leads to each version from the one before; version 1 is what is created."""

_current: WeakKeyDictionary[Pool, bool] = WeakKeyDictionary()


def migrate(connection: Connection) -> None:
    """Bring existing tables to this version, step by step, in the transaction of this connection.

    Raises:
        OutboxOutdated: they are of a later version than this library.
    """
    found = connection.scalar(select(func.max(schema.c.version)))
    if found is None:
        connection.execute(insert(schema).values(version=VERSION))
        return
    if found > VERSION:
        raise OutboxOutdated(_place(connection), found, VERSION)
    for version in range(found + 1, VERSION + 1):
        for statement in STEPS[version]:
            connection.exec_driver_sql(statement)
        connection.execute(update(schema).values(version=version))


def ensure_current() -> None:
    """See once for each database that its tables are there, in this version.

    Raises:
        OutboxOutdated: they are not; says what to do.
    """
    if engine().pool not in _current:
        with engine().begin() as connection:
            check(connection)


def check(connection: Connection) -> None:
    """See the same in the transaction of this connection.

    Raises:
        OutboxOutdated: they are not; says what to do.
    """
    pool = connection.engine.pool
    if pool in _current:
        return
    found = None
    if inspect(connection).has_table(schema.name):
        found = connection.scalar(select(func.max(schema.c.version)))
    if found != VERSION:
        raise OutboxOutdated(_place(connection), found, VERSION)
    _current[pool] = True


def _place(connection: Connection) -> str:
    return connection.engine.url.render_as_string()


migrations.append(migrate)
