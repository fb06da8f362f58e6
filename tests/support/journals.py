"""Recorded emissions, as tests read them from the database."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select

from nitro.infrastructure.database import engine
from nitro.infrastructure.outbox import journal
from nitro.infrastructure.outbox.schema import emissions, time_of_id
from nitro.infrastructure.outbox.versions import ensure_current
from support.waiting import until

PATIENCE = 20.0
"""Seconds that a test waits for the journal."""


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
    def began(self) -> datetime:
        """Begin of the emission, as its id tells."""
        return time_of_id(self.id)

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


def flush() -> None:
    """Waits until the journal has written all that it has recorded."""
    assert journal.journal.flush(PATIENCE)


def has_unwritten() -> bool:
    """Whether the journal holds emissions that it has still to write."""
    return bool(journal.journal._entries)


@contextmanager
def writes_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Blocks every write of the journal until the event is set, at the latest at the end of the block."""
    go, insert = threading.Event(), journal._insert_entries

    def wait(entries: list[Any]) -> None:
        assert go.wait(PATIENCE)
        insert(entries)

    monkeypatch.setattr(journal, "_insert_entries", wait)
    yield go
    go.set()
    flush()


def set_limits(monkeypatch: pytest.MonkeyPatch, *, unwritten: int | None = None, batch: int | None = None) -> None:
    """Changes the number of emissions that the journal holds, or the number that it writes at a time."""
    if unwritten is not None:
        monkeypatch.setattr(journal, "MAX_PENDING_ENTRIES", unwritten)
    if batch is not None:
        monkeypatch.setattr(journal, "WRITE_BATCH", batch)


def fail_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the journal raise an error for each emission."""
    monkeypatch.setattr(journal, "report_of", lambda *_: 1 / 0)


def exit_wait() -> float:
    """Returns the seconds that the end of a process waits for the journal."""
    return journal.EXIT_WAIT_SECONDS


def set_exit_wait(seconds: float) -> None:
    """Changes the seconds that the end of this process waits for the journal."""
    journal.EXIT_WAIT_SECONDS = seconds


def write_at_exit_only() -> None:
    """Makes the journal write what is recorded from now on only when this process ends."""
    journal.BATCH_DELAY_SECONDS = 3600.0


def forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the journal warn again of a database in memory."""
    monkeypatch.setattr(journal.journal, "_has_warned_of_memory", False)
