"""A consumer that gets nothing although its queue holds messages: contract section 7."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from sqlalchemy import update

from brokers import on_server
from nitro.infrastructure.database import engine
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload.courier import courier
from nitro.infrastructure.outbox.tables import deliveries, now
from nitro.infrastructure.worker.starvation import Starvation
from waiting import until

LONG = 60.0


@pytest.fixture(params=["amqp", "redis"])
def app(offloading: None, request: pytest.FixtureRequest) -> Celery:
    """A bound app on a server."""
    return on_server(request.param)


@pytest.mark.server
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")  # at each lost connection
def test_a_worker_that_gets_nothing_connects_anew(evt: Event, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """At the second look at which its queue holds messages and it has none."""
    queue, handled = f"nitro-starving-{os.getpid()}", threading.Event()
    on(evt, offload={"queue": queue}, name="shop.fed")(lambda sender: handled.set())
    app.amqp.queues.select_add(queue, durable=False, auto_delete=True)
    app.amqp.queues.select([queue])
    solo = {"pool": "solo", "loglevel": "WARNING", "without_heartbeat": False}  # its heart wakes the loop, to end too
    with start_worker(app, perform_ping_check=False, **solo) as worker:
        emit(evt)
        until(handled.is_set)
        handled.clear()
        forget(worker)
        emit(evt)
        assert courier.drain(LONG)
        starvation = Starvation(worker)
        starvation.look()
        starvation.look()
        assert "connecting anew" not in caplog.text, "a message that has just been published is no sign"
        publish_long_ago()
        starvation.look()
        assert "connecting anew" not in caplog.text, "a worker may be just about to take it"
        starvation.look()
        assert "connecting anew" in caplog.text
        until(handled.is_set)
        caplog.clear()
        for _ in range(3):
            starvation.look()
        assert "connecting anew" not in caplog.text, "a worker that has nothing to do does not starve"


def forget(worker: Any) -> None:
    """Have the broker deliver nothing to this worker any more, which does not know it."""
    cancelled = threading.Event()

    def cancel() -> None:
        worker.consumer.task_consumer.cancel()
        cancelled.set()

    worker.consumer.call_soon(cancel)
    until(cancelled.is_set)


def publish_long_ago() -> None:
    """Have all messages lie in their queue for long."""
    with engine().begin() as connection:
        connection.execute(update(deliveries).values(published_at=now() - LONG))
