"""What is recorded of emissions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from nitro.infrastructure.database import engine
from nitro.infrastructure.outbox.schema import emissions
from nitro.infrastructure.outbox.versions import ensure_current
from waiting import until


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A row of an emission."""

    id: str
    event: str | None
    sender: str
    root: str | None
    parent: str | None
    story: dict[str, Any]

    @property
    def outcomes(self) -> dict[str, str]:
        """The outcome of each handler, in order."""
        return {turn["handler"]: turn["outcome"] for turn in self.story["handlers"]}

    def turn(self, handler: str) -> dict[str, Any]:
        """What is told of a handler."""
        (found,) = [turn for turn in self.story["handlers"] if turn["handler"] == handler]
        return dict(found)


def rows() -> list[Recorded]:
    """All that is recorded now, the earliest first."""
    ensure_current()
    c = emissions.c
    asked = select(c.id, c.event, c.sender, c.root, c.parent, c.story).order_by(c.id)
    with engine().connect() as connection:
        found = connection.execute(asked).all()
    return [Recorded(**{**row._asdict(), "story": json.loads(row.story)}) for row in found]


def recorded(number: int = 1) -> list[Recorded]:
    """So many, as soon as they are there."""
    return until(lambda: found if len(found := rows()) >= number else [])


def only() -> Recorded:
    """The one that is recorded, as soon as it is."""
    (found,) = recorded()
    return found
