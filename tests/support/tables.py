"""The outbox's tables: their creation, and the version that is stored with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from sqlalchemy import select

from nitro.infrastructure.database import engine, reset, write_connection
from nitro.infrastructure.outbox import versions
from nitro.infrastructure.outbox.schema import schema_versions
from nitro.infrastructure.outbox.versions import USABLE_FROM, VERSION, init, init_script

__all__ = ["USABLE_FROM", "VERSION", "init", "init_script"]


def stored_versions() -> list[tuple[int, int]]:
    """Returns the version of the tables, and the oldest version of the library that may use them."""
    with engine().connect() as connection:
        return [tuple(row) for row in connection.execute(select(schema_versions))]


def set_version(version: int, usable_from: int) -> None:
    """Stores another version of the tables, as a later library would."""
    with write_connection() as connection:
        connection.execute(schema_versions.update().values(version=version, usable_from=usable_from))
    reset()


def use_steps(monkeypatch: pytest.MonkeyPatch, version: int, steps: Mapping[int, Sequence[str]]) -> None:
    """Makes the library one of a later version, with these statements for each step to it."""
    monkeypatch.setattr(versions, "VERSION", version)
    monkeypatch.setattr(versions, "UPGRADE_STEPS", steps)
    reset()
