"""A consumer that gets nothing although its queue has messages connects again: contract section 7."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from celery import Celery
from celery.worker import state
from sqlalchemy import func, select, update

from nitro.infrastructure.database import engine
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload.publishing.connection import queue_sizes
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox.schema import deliveries, now, workers
from nitro.infrastructure.worker.watchdog import ConsumerWatchdog
from support.app import solo_worker
from support.brokers import bound, on_server, own_redis
from support.waiting import until

LONG = 60.0


@pytest.fixture(params=["amqp", "redis"])
def app(offloading: None, request: pytest.FixtureRequest) -> Celery:
    """A bound app on a server."""
    return on_server(request.param)


@pytest.mark.server
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")  # at each lost connection
def test_a_worker_that_gets_nothing_connects_anew(evt: Event, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """A worker connects again at the second check that finds messages in its queue and none in the worker."""
    queue, handled = f"nitro-starving-{os.getpid()}", threading.Event()
    on(evt, offload={"queue": queue}, name="shop.fed")(lambda sender: handled.set())
    app.amqp.queues.select_add(queue, durable=False, auto_delete=True)
    app.amqp.queues.select([queue])
    with solo_worker(app) as worker:
        emit(evt)
        until(handled.is_set)
        handled.clear()
        stop_deliveries(worker)
        emit(evt)
        assert publisher.drain(LONG)
        watchdog = ConsumerWatchdog(worker)
        watchdog.check()
        watchdog.check()
        assert "reconnecting" not in caplog.text, "a message that has just been published proves nothing"
        publish_long_ago()
        watchdog.check()
        assert "reconnecting" not in caplog.text, "a worker may be just about to take it"
        watchdog.check()
        assert "reconnecting" in caplog.text
        until(handled.is_set)
        caplog.clear()
        for _ in range(3):
            watchdog.check()
        assert "reconnecting" not in caplog.text, "a worker without work is not starved"


@pytest.mark.server
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
def test_a_worker_that_holds_messages_does_not_starve(
    evt: Event, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that holds messages because of a rate limit does not connect again."""
    queue, handled = f"nitro-limited-{os.getpid()}", threading.Event()
    on(evt, offload={"queue": queue, "rate_limit": "1/h"}, name="shop.limited")(lambda sender: handled.set())
    app.amqp.queues.select_add(queue, durable=False, auto_delete=True)
    app.amqp.queues.select([queue])
    with solo_worker(app) as worker:
        for _ in range(20):
            emit(evt)
        until(handled.is_set)
        assert publisher.drain(LONG)
        publish_long_ago()
        until(lambda: queue_sizes(app, [queue])[queue] > 0 and not state.active_requests)
        watchdog = ConsumerWatchdog(worker)
        for _ in range(4):
            watchdog.check()
        assert "reconnecting" not in caplog.text
        with app.connection_for_write() as connection:
            connection.default_channel.queue_purge(queue)


@pytest.mark.server
def test_a_frozen_broker_does_not_delay_heartbeats(
    offloading: None, evt: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker writes heartbeats while its broker does not answer a question about queue sizes."""
    asking, answered = threading.Event(), threading.Event()

    def ask(*question: Any) -> dict[str, int]:
        asking.set()
        try:
            return queue_sizes(*question)
        finally:
            answered.set()

    monkeypatch.setattr("nitro.infrastructure.worker.watchdog.queue_sizes", ask)
    monkeypatch.setattr("nitro.infrastructure.outbox.pending.has_long_queued", lambda _queues: True)
    monkeypatch.setattr("nitro.infrastructure.worker.supervisor.CHECK_SECONDS", 0.1)
    monkeypatch.setattr("nitro.infrastructure.worker.supervisor.HEARTBEAT_SECONDS", 0.1)
    on(evt, offload=True, name="shop.fed")(lambda sender: None)
    with own_redis() as server, solo_worker(bound(server.url), loglevel="ERROR"):
        until(asking.is_set)
        server.freeze()
        asking.clear()
        until(asking.is_set)
        answered.clear()
        first = count_heartbeats()
        until(lambda: count_heartbeats() >= first + 2)
        assert not answered.is_set(), "the worker did not wait for the broker"
        server.thaw()


def count_heartbeats() -> int:
    """Returns the sum of the workers' heartbeat counters."""
    with engine().connect() as connection:
        return connection.scalar(select(func.sum(workers.c.beat))) or 0


def stop_deliveries(worker: Any) -> None:
    """Cancels the worker's consumer at the broker without the worker's knowledge."""
    cancelled = threading.Event()

    def cancel() -> None:
        worker.consumer.task_consumer.cancel()
        cancelled.set()

    worker.consumer.call_soon(cancel)
    until(cancelled.is_set)


def publish_long_ago() -> None:
    """Moves the publication of all messages into the past."""
    with engine().begin() as connection:
        connection.execute(update(deliveries).values(published_at=now() - LONG))
