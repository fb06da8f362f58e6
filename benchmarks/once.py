"""Exactly once as people make it by hand: what the worker's tasks and the floors execute."""

from __future__ import annotations

from sqlalchemy import Connection, text

COUNT = text("UPDATE attempts SET count = count + 1 WHERE key = :key")
TAKE = text("INSERT INTO done (key) VALUES (:key) ON CONFLICT DO NOTHING")
EXPECT = text("INSERT INTO attempts (key) VALUES (:key)")


def create(connection: Connection) -> None:
    """The tables of it: how often each key was tried, and which are done."""
    connection.execute(text("CREATE TABLE attempts (key text PRIMARY KEY, count int NOT NULL DEFAULT 0)"))
    connection.execute(text("CREATE TABLE done (key text PRIMARY KEY)"))
