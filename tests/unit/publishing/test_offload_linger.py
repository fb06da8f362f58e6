"""Tracked messages gather for a moment after a batch was sent; an emit that waits is not delayed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from celery import Celery

from nitro.infrastructure.events import Event, Namespace, emit, on
from nitro.infrastructure.offload.publishing import queue
from nitro.infrastructure.offload.publishing.publisher import publisher
from support.brokers import on_server
from support.waiting import until

pytestmark = pytest.mark.server

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def lingering(offloading: None, batch_sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that a first batch has just been sent to; later messages linger until a drain."""
    app = on_server("redis")
    first = Namespace().event("first")
    offloaded(first, "shop.first", "at-least-once")
    emit(first)
    assert publisher.drain(PATIENCE)
    monkeypatch.setattr(queue, "LINGER_SECONDS", 10 * PATIENCE)
    batch_sizes.clear()
    yield
    assert publisher.drain(PATIENCE)
    _purge(app)


def _purge(app: Celery) -> None:
    with app.connection_for_write() as connection:
        connection.default_channel.queue_purge("celery")


def offloaded(evt: Event, name: str, delivery: str) -> None:
    """Connects an offloaded handler."""
    on(evt, offload={"delivery": delivery}, name=name)(lambda sender: None)


def test_tracked_emits_that_follow_one_another_leave_together(evt: Event, batch_sizes: list[int]) -> None:
    """Tracked messages linger and leave as one batch, here at a drain."""
    offloaded(evt, "shop.a", "at-least-once")
    for _ in range(3):
        emit(evt)
    assert batch_sizes == []
    assert publisher.drain(PATIENCE)
    assert batch_sizes == [3]


def test_an_emit_that_waits_takes_them_along(evt: Event, batch_sizes: list[int]) -> None:
    """An emit that waits for the broker sends lingering messages along at once."""
    offloaded(evt, "shop.a", "at-least-once")
    emit(evt)
    urgent = Namespace().event("urgent")
    offloaded(urgent, "shop.urgent", "broker")
    emit(urgent)
    until(lambda: sum(batch_sizes) == 2)
    assert batch_sizes == [2]


def test_many_do_not_wait_for_more(evt: Event, batch_sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A full batch is sent at once, and is never larger than the limit."""
    monkeypatch.setattr(queue, "MAX_MERGED_MESSAGES", 2)
    offloaded(evt, "shop.a", "at-least-once")
    threads = [threading.Thread(target=emit, args=(evt,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    until(lambda: sum(batch_sizes) == 4)
    assert max(batch_sizes) == 2
