"""What nobody waits for gathers a moment while others have just left; who waits is not kept waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from celery import Celery

from brokers import on_server
from nitro.infrastructure.events import Event, Namespace, emit, on
from nitro.infrastructure.offload.publishing import queue
from nitro.infrastructure.offload.publishing.publisher import publisher
from waiting import until

pytestmark = pytest.mark.server

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def lingering(offloading: None, flights: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a server, to which a first flight has just left; what follows lingers until it is told."""
    app = on_server("redis")
    first = Namespace().event("first")
    offloaded(first, "shop.first", "at-least-once")
    emit(first)
    assert publisher.drain(PATIENCE)
    monkeypatch.setattr(queue, "LINGER_SECONDS", 10 * PATIENCE)
    flights.clear()
    yield
    assert publisher.drain(PATIENCE)
    _purge(app)


def _purge(app: Celery) -> None:
    with app.connection_for_write() as connection:
        connection.default_channel.queue_purge("celery")


def offloaded(evt: Event, name: str, delivery: str) -> None:
    """Connect an offloaded handler."""
    on(evt, offload={"delivery": delivery}, name=name)(lambda sender: None)


def test_tracked_emits_that_follow_one_another_leave_together(evt: Event, flights: list[int]) -> None:
    """They wait for nobody; here until a drain wants them gone."""
    offloaded(evt, "shop.a", "at-least-once")
    for _ in range(3):
        emit(evt)
    assert flights == []
    assert publisher.drain(PATIENCE)
    assert flights == [3]


def test_an_emit_that_waits_takes_them_along(evt: Event, flights: list[int]) -> None:
    """At once."""
    offloaded(evt, "shop.a", "at-least-once")
    emit(evt)
    urgent = Namespace().event("urgent")
    offloaded(urgent, "shop.urgent", "broker")
    emit(urgent)
    until(lambda: sum(flights) == 2)
    assert flights == [2]


def test_many_do_not_wait_for_more(evt: Event, flights: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A flight is never larger than it may be."""
    monkeypatch.setattr(queue, "MAX_MERGED_MESSAGES", 2)
    offloaded(evt, "shop.a", "at-least-once")
    threads = [threading.Thread(target=emit, args=(evt,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    until(lambda: sum(flights) == 4)
    assert max(flights) == 2
