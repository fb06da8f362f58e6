"""How a worker on Redis takes messages: with one client, on every connection."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker
from kombu.transport import redis

from brokers import on_server
from nitro.infrastructure.events import Event, emit, on
from waiting import until

LONG = 20.0


@pytest.mark.server
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")  # at each lost connection
def test_messages_are_acknowledged_with_one_client(
    evt: Event, offloading: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is made for a message, before and after the connection was lost."""
    app = on_server("redis")
    queue, handled = f"nitro-receiving-{os.getpid()}", threading.Semaphore(0)
    on(evt, offload={"queue": queue}, name="shop.received")(lambda sender: handled.release())
    app.amqp.queues.select([queue])
    made: list[Any] = []
    create = redis.Channel._create_client

    def noted(channel: Any, asynchronous: bool = False) -> Any:
        made.append(channel)
        return create(channel, asynchronous=asynchronous)

    monkeypatch.setattr(redis.Channel, "_create_client", noted)
    solo = {"pool": "solo", "loglevel": "WARNING", "without_heartbeat": False}  # its heart wakes the loop, to end too
    with start_worker(app, perform_ping_check=False, **solo) as worker:
        for _ in range(2):
            handle(evt, handled, 1)
            channel = worker.consumer.task_consumer.channel
            made.clear()
            handle(evt, handled, 3)
            assert channel not in made
            lose_connection(worker)


def handle(evt: Event, handled: threading.Semaphore, count: int) -> None:
    """Emit so many times, and wait until as many have been handled."""
    for _ in range(count):
        emit(evt)
    assert all(handled.acquire(timeout=LONG) for _ in range(count))


def lose_connection(worker: Any) -> None:
    """Have the worker lose its connection, and wait until it has another."""
    before = worker.consumer.connection
    worker.consumer.call_soon(fail)
    until(lambda: worker.consumer.connection not in (None, before))


def fail() -> None:
    """What a loop raises whose connection is lost."""
    raise ConnectionError("lost")
