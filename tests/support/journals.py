"""Recorded emissions, as tests read them from the database."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from nitro.infrastructure.database import engine
from nitro.infrastructure.outbox.schema import emissions
from nitro.infrastructure.outbox.versions import ensure_current
from support.waiting import until


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The row of an emission."""

    id: str
    event: str | None
    sender: str
    root: str | None
    parent: str | None
    story: dict[str, Any]

    @property
    def outcomes(self) -> dict[str, str]:
        """Outcomes by handler, in order."""
        return {turn["handler"]: turn["outcome"] for turn in self.story["handlers"]}

    def turn(self, handler: str) -> dict[str, Any]:
        """Returns the record of a handler."""
        (record,) = [turn for turn in self.story["handlers"] if turn["handler"] == handler]
        return dict(record)


def rows() -> list[Recorded]:
    """Returns all recorded emissions, the earliest first."""
    ensure_current()
    c = emissions.c
    query = select(c.id, c.event, c.sender, c.root, c.parent, c.story).order_by(c.id)
    with engine().connect() as connection:
        records = connection.execute(query).all()
    return [Recorded(**{**record._asdict(), "story": json.loads(record.story)}) for record in records]


def recorded(number: int = 1) -> list[Recorded]:
    """Waits until so many emissions are recorded, and returns all."""
    return until(lambda: records if len(records := rows()) >= number else [])


def only() -> Recorded:
    """Waits for the first recorded emission, and returns it if it is the only one."""
    (record,) = recorded()
    return record
