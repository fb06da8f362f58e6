"""What the unit tests share: a fresh database for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlmodel import SQLModel

from nitro.infrastructure.database import create_tables, engine, reset

SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432"


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh SQLite file that the whole process uses; the path to it."""
    path = tmp_path / "nitro.db"
    monkeypatch.setenv("NITRO_DB_URL", f"sqlite:///{path}")
    reset()
    yield path
    reset()


@pytest.fixture(scope="session")
def database_server() -> Iterator[str]:
    """The URL of an empty PostgreSQL database, dropped at the end; skips loudly where no server answers."""
    name = f"nitro_unit_{os.getpid()}"
    server = create_engine(f"{SERVER}/postgres", isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    try:
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        if os.environ.get("NITRO_TEST_SERVERS") == "required":
            raise
        pytest.skip(f"MISSING SERVER: PostgreSQL does not answer at {SERVER}: {error}")
    yield f"{SERVER}/{name}"
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def database_each(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh database of each kind in turn, with its tables; the name of the kind."""
    if request.param == "sqlite":
        request.getfixturevalue("database")
        yield "sqlite"
        return
    monkeypatch.setenv("NITRO_DB_URL", request.getfixturevalue("database_server"))
    reset()
    create_tables()
    yield "postgresql"
    SQLModel.metadata.drop_all(engine())
    reset()
