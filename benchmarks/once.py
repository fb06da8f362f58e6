"""Exactly once as people make it by hand: what the worker's task and the floor run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Engine, text

_COUNT = text("UPDATE attempts SET count = count + 1 WHERE key = :key")
_TAKE = text("INSERT INTO done (key) VALUES (:key) ON CONFLICT DO NOTHING")
_EXPECT = text("INSERT INTO attempts (key) VALUES (:key)")


def create(connection: Connection) -> None:
    """The tables of it: how often each key was tried, and which are done."""
    connection.execute(text("CREATE TABLE attempts (key text PRIMARY KEY, count int NOT NULL DEFAULT 0)"))
    connection.execute(text("CREATE TABLE done (key text PRIMARY KEY)"))


def expect(connection: Connection, keys: Sequence[str]) -> None:
    """Make keys known before they are sent."""
    connection.execute(_EXPECT, [{"key": key} for key in keys])


def run(engine: Engine, key: str, work: Callable[[], object]) -> None:
    """Count the attempt; then take the key and work in one transaction, unless it was taken before."""
    with engine.begin() as connection:
        connection.execute(_COUNT, {"key": key})
    with engine.begin() as connection:
        if connection.execute(_TAKE, {"key": key}).rowcount:
            work()
