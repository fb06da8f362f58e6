"""The databases that a test can be about."""

from __future__ import annotations

import pytest

from nitro.infrastructure.database import create_tables, reset, write_connection

KINDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.server))


def on_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Track deliveries in a database of this kind, which is as empty as a new one."""
    if kind == "postgresql":
        monkeypatch.setenv("NITRO_DB_URL", request.getfixturevalue("database_server"))
        reset()
        create_tables()
        with write_connection() as connection:
            connection.exec_driver_sql("TRUNCATE nitro_delivery, nitro_emission")
