"""Faults: a broker that hangs or fails, a database that is away, a run that another worker takes over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from nitro.infrastructure import failpoints
from nitro.infrastructure.database import write_connection
from nitro.infrastructure.offload import broker, dispatcher
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.publishing.connection import BrokerConnection
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.offload.publishing.queue import Batch
from nitro.infrastructure.outbox import claims, inserts, pending
from nitro.infrastructure.outbox.schema import deliveries
from nitro.infrastructure.worker import attempt

PATIENCE = 20.0
"""Seconds that what a fault holds up waits at most."""


def raises(error: Exception) -> Callable[..., Any]:
    """Returns a function that raises an error, whatever it is called with."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def set_reachable(reachable: bool) -> None:
    """Makes the publisher treat the broker as reachable or as unreachable."""
    publisher._failures, publisher._paused_until = (0, 0.0) if reachable else (1, float("inf"))


def use_publisher_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishes on the publisher thread, as with any server, although the broker is in memory."""
    monkeypatch.setattr(dispatcher, "is_embedded", lambda app: False)


def hang_broker(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Makes the broker accept a message and not answer, until the returned event is set."""
    released = threading.Event()

    def hang(self: TaskMessage, *args: Any, **kwargs: Any) -> None:
        assert released.wait(PATIENCE)

    monkeypatch.setattr(TaskMessage, "publish", hang)
    use_publisher_thread(monkeypatch)
    return released


def hold_batches(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Makes each batch wait on the publisher thread while the returned event is not set."""
    free, publish = threading.Event(), BrokerConnection.publish

    def wait_and_publish(self: BrokerConnection, batch: Batch) -> Any:
        assert free.wait(PATIENCE)
        return publish(self, batch)

    monkeypatch.setattr(BrokerConnection, "publish", wait_and_publish)
    return free


def fail_publishing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Makes the broker raise an error for each message that Celery publishes."""
    monkeypatch.setattr(TaskMessage, "publish", raises(error))


def fail_storing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Makes the database raise an error for the rows of an emission."""
    monkeypatch.setattr(inserts, "insert_deliveries", raises(error))


def fail_storing_untracked(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Makes the database raise an error for the rows of untracked deliveries."""
    insert_rows = inserts.insert_deliveries

    def insert_tracked(connection: Any, app: Any, messages: Any, *, queued: bool) -> None:
        if any(not message.is_tracked for message in messages):
            raise error
        insert_rows(connection, app, messages, queued=queued)

    monkeypatch.setattr(inserts, "insert_deliveries", insert_tracked)


def fail_requeueing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Makes the database raise an error for deliveries that are put back after a failed publish."""
    monkeypatch.setattr(pending, "requeue_unconfirmed", raises(error))


def fail_runs(monkeypatch: pytest.MonkeyPatch, times: int, error: Exception) -> dict[str, int]:
    """Makes the first claims and the first ends of runs raise an error; returns how many are still to do so."""
    failures = {"claim": times, "finish": times}

    def failing_first(name: str) -> Any:
        real = getattr(claims, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if failures[name]:
                failures[name] -= 1
                raise error
            return real(*args, **kwargs)

        return call

    for name in failures:
        monkeypatch.setattr(claims, name, failing_first(name))
    monkeypatch.setattr(attempt, "RETRY_SECONDS", 0.01)
    return failures


def take_over_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes another worker claim each delivery again as soon as a worker has claimed it."""

    def take_over(place: str) -> None:
        if place == "claimed by a worker":
            with write_connection() as connection:
                connection.execute(deliveries.update().values(attempts=deliveries.c.attempts + 1))

    monkeypatch.setattr(failpoints, "hooks", [take_over])


def set_redis_timeouts(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Changes the time-outs of connections to Redis."""
    options = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    monkeypatch.setattr(broker, "TRANSPORT_OPTIONS", {"redis": options})
