"""Connections to PostgreSQL: pinged after a time without use, and not before each use."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from nitro.infrastructure.database import autocommit_connection, connections, engine, reset, write_connection

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def server(database_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets a database server, with an engine of Nitro."""
    monkeypatch.setenv("NITRO_DB_URL", database_server)
    reset()


@pytest.fixture
def pings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections that were pinged."""
    asked: list[Any] = []
    ping = engine().dialect.do_ping

    def noted(connection: Any) -> bool:
        asked.append(connection)
        return ping(connection)

    monkeypatch.setattr(engine().dialect, "do_ping", noted)
    return asked


def process() -> int:
    """Returns the server process of the next connection."""
    with engine().connect() as connection:
        return int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)


def end(pid: int) -> None:
    """Ends a process of the server, from a separate connection."""
    other = create_engine(engine().url, poolclass=NullPool)
    with other.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})


def test_one_that_was_used_a_moment_ago_is_not_asked(pings: list[Any]) -> None:
    """A ping costs a round trip."""
    assert process() == process() == process()
    assert pings == []


def test_one_that_was_silent_is_asked(pings: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle connection is pinged once for each checkout."""
    first = process()
    monkeypatch.setattr(connections, "IDLE_SECONDS", -1.0)
    assert process() == first
    assert len(pings) == 1


def test_one_that_has_ended_in_silence_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user of the connection gets a new one without an error."""
    first = process()
    end(first)
    monkeypatch.setattr(connections, "IDLE_SECONDS", -1.0)
    assert process() != first


def test_one_that_has_just_ended_is_an_error_once() -> None:
    """The first use raises an error; after it the pool has new connections."""
    first = process()
    end(first)
    with pytest.raises(OperationalError):
        process()
    assert process() != first


def test_a_statement_alone_is_a_transaction_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement is committed at once; afterwards the connection begins transactions again."""
    with write_connection() as connection:
        connection.execute(text("DROP TABLE IF EXISTS alone"))
        connection.execute(text("CREATE TABLE alone (id int)"))
    with autocommit_connection() as connection:
        connection.execute(text("INSERT INTO alone VALUES (1)"))
        with engine().connect() as other:
            assert other.scalar(text("SELECT count(*) FROM alone")) == 1
    with engine().connect() as connection:
        connection.execute(text("INSERT INTO alone VALUES (2)"))
    with engine().connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM alone")) == 1
    with write_connection() as connection:
        connection.execute(text("DROP TABLE alone"))
