"""A worker on Redis acknowledges messages with one client, on every connection."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from kombu.transport import redis

from nitro.infrastructure.events import Event, emit, on
from support.app import solo_worker
from support.brokers import on_server
from support.waiting import until

LONG = 20.0


@pytest.mark.server
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")  # at each lost connection
def test_messages_are_acknowledged_with_one_client(
    evt: Event, offloading: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client is created for a message, before and after a lost connection."""
    app = on_server("redis")
    queue, handled = f"nitro-receiving-{os.getpid()}", threading.Semaphore(0)
    on(evt, offload={"queue": queue}, name="shop.received")(lambda sender: handled.release())
    app.amqp.queues.select([queue])
    channels: list[Any] = []
    create = redis.Channel._create_client

    def record_and_create(channel: Any, asynchronous: bool = False) -> Any:
        channels.append(channel)
        return create(channel, asynchronous=asynchronous)

    monkeypatch.setattr(redis.Channel, "_create_client", record_and_create)
    with solo_worker(app) as worker:
        for _ in range(2):
            handle(evt, handled, 1)
            channel = worker.consumer.task_consumer.channel
            channels.clear()
            handle(evt, handled, 3)
            assert channel not in channels
            lose_connection(worker)


def handle(evt: Event, handled: threading.Semaphore, count: int) -> None:
    """Emits so many times, and waits until all have been handled."""
    for _ in range(count):
        emit(evt)
    assert all(handled.acquire(timeout=LONG) for _ in range(count))


def lose_connection(worker: Any) -> None:
    """Breaks the worker's connection, and waits until it has another."""
    before = worker.consumer.connection
    worker.consumer.call_soon(fail)
    until(lambda: worker.consumer.connection not in (None, before))


def fail() -> None:
    """Raises the error of a lost connection."""
    raise ConnectionError("lost")
