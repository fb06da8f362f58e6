"""A worker's answer about its outbox: the main loop waits only a moment for the database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nitro.infrastructure.outbox.health import DeliveryGroup, Health
from nitro.infrastructure.worker import control
from nitro.infrastructure.worker.control import HealthQuery
from nitro.infrastructure.worker.knowledge import WorkerInfo

WORKER = WorkerInfo(name="one@shop", queues=frozenset({"bills"}), tasks={})
GROUP = DeliveryGroup(handler="shop.mail", queue="mails", state="queued", count=3, stuck=2, age=600.0, worker=None)
HEALTH = Health(deliveries={"waiting": 0, "queued": 3, "running": 0, "dead": 0}, groups=(GROUP,))


class Database:
    """A database that answers after `free` is set."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.asked = 0
        self.answer: Health | Exception = HEALTH

    def health(self) -> Health:
        """Waits for `free`, then returns or raises the answer."""
        self.asked += 1
        assert self.free.wait(20)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A slow database that answers from the end of the test at the latest."""
    slow = Database()
    monkeypatch.setattr(control, "read_health", slow.health)
    yield slow
    slow.free.set()


def answer(question: HealthQuery, patience: float = 20.0) -> dict[str, Any]:
    """Returns the worker's answer."""
    return question.answer(patience, WORKER)


def test_what_is_stuck_is_told_with_its_reason(database: Database) -> None:
    """The answer has the reason as far as this worker knows it."""
    database.free.set()
    told = answer(HealthQuery())
    assert told["deliveries"] == HEALTH.deliveries
    assert told["stuck"] == [
        {
            "handler": "shop.mail",
            "queue": "mails",
            "state": "queued",
            "count": 2,
            "oldest_seconds": 600.0,
            "why": "this worker does not consume queue mails (consumed: bills)",
        }
    ]


def test_a_slow_database_is_not_one_that_is_away(database: Database) -> None:
    """The last answer is given with its age, and the database is never asked twice at the same time."""
    question = HealthQuery()
    assert "has not answered within 0 s" in answer(question, 0.0)["error"]
    assert "has not answered within 0 s" in answer(question, 0.0)["error"]
    assert database.asked == 1
    database.free.set()
    assert "seconds_ago" not in answer(question)
    database.free.clear()
    late = answer(question, 0.0)
    assert (late["deliveries"], late["seconds_ago"] >= 0) == (HEALTH.deliveries, True)


def test_what_the_database_refuses_is_told(database: Database) -> None:
    """The answer has the database's error."""
    database.free.set()
    database.answer = OSError("no such host")
    assert answer(HealthQuery()) == {"error": "OSError: no such host"}
