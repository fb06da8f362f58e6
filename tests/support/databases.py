"""Databases for parametrised tests."""

from __future__ import annotations

import pytest

from nitro.infrastructure.database import create_tables, reset, write_connection

KINDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.server))


def on_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Points NITRO_DB_URL to an empty database of this kind."""
    if kind == "postgresql":
        monkeypatch.setenv("NITRO_DB_URL", request.getfixturevalue("database_server"))
        reset()
        create_tables()
        with write_connection() as connection:
            connection.exec_driver_sql("TRUNCATE nitro_delivery, nitro_emission")
