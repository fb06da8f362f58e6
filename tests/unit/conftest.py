"""Fixtures of the unit tests: an empty database for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import SQLModel

from nitro.infrastructure.database import create_tables, engine, nitro_metadata, reset
from support.databases import KINDS


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty SQLite file that the whole process uses; returns its path."""
    path = tmp_path / "nitro.db"
    monkeypatch.setenv("NITRO_DB_URL", f"sqlite:///{path}")
    reset()
    yield path
    reset()


@pytest.fixture(params=KINDS)
def database_each(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty database of each kind in turn, with its tables; returns the name of the kind."""
    if request.param == "sqlite":
        request.getfixturevalue("database")
        yield "sqlite"
        return
    monkeypatch.setenv("NITRO_DB_URL", request.getfixturevalue("database_server"))
    reset()
    create_tables()
    yield "postgresql"
    SQLModel.metadata.drop_all(engine())
    nitro_metadata.drop_all(engine())
    reset()
