"""Hand-written exactly-once: a table of attempts and a table of keys that are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Engine, text

_COUNT = text("UPDATE attempts SET count = count + 1 WHERE key = :key")
_TAKE = text("INSERT INTO done (key) VALUES (:key) ON CONFLICT DO NOTHING")
_INSERT = text("INSERT INTO attempts (key) VALUES (:key)")


def create_tables(connection: Connection) -> None:
    """Creates the tables: attempts for each key, and keys that are done."""
    connection.execute(text("CREATE TABLE attempts (key text PRIMARY KEY, count int NOT NULL DEFAULT 0)"))
    connection.execute(text("CREATE TABLE done (key text PRIMARY KEY)"))


def insert_keys(connection: Connection, keys: Sequence[str]) -> None:
    """Inserts the keys before their messages are sent."""
    connection.execute(_INSERT, [{"key": key} for key in keys])


def run_once(engine: Engine, key: str, work: Callable[[], object]) -> None:
    """Counts the attempt, then takes the key and works in one transaction, unless the key is done already."""
    with engine.begin() as connection:
        connection.execute(_COUNT, {"key": key})
    with engine.begin() as connection:
        if connection.execute(_TAKE, {"key": key}).rowcount:
            work()
