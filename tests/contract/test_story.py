"""What is recorded of an emission: what became of each of its handlers, when, where, and why."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable

import pytest
from celery import Celery

from journals import only
from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.events import Event, drain, emit, emit_async, on
from nitro.infrastructure.outbox import operations

TRACKED = ("at-least-once", "exactly-once")
Made = Callable[..., None]


class Parcelled(Entity, table=True):
    """Somebody who emits, and shows a field."""

    __tablename__ = "story_parcelled"
    __nitro_show__ = ("weight",)

    weight: int = 0


@pytest.fixture(params=["journal", *TRACKED])
def told(request: pytest.FixtureRequest, evt: Event, app: Celery) -> str:
    """Records the emissions of an event: the journal, or the row of a tracked delivery; which of them."""
    if request.param == "journal":
        request.getfixturevalue("journal_on")
    else:
        on(evt, offload={"delivery": request.param}, name="shop.tracked")(lambda sender, **kwargs: None)
    return str(request.param)


def nothing() -> Callable[..., None]:
    """A handler of its own."""
    return lambda sender, **kwargs: None


def test_each_inline_handler_is_told_of(told: str, evt: Event) -> None:
    """In the order of the emission, with its begin and its length."""
    took: list[float] = []

    @on(evt, name="shop.second")
    def second_(sender: str) -> None:
        began = time.perf_counter()
        sum(range(10_000))
        took.append(time.perf_counter() - began)

    on(evt, name="shop.first", priority=5)(nothing())
    before = time.time()
    emission = emit(evt, "ada")
    after = time.time()
    found = only()
    assert (found.id, found.event, found.sender) == (emission.id, "order.placed", "str")
    assert list(found.outcomes.items()) == [("shop.first", "done"), ("shop.second", "done")]
    first, second = found.turn("shop.first"), found.turn("shop.second")
    assert 0 <= first["at"] <= first["at"] + first["took"] <= second["at"]
    assert second["took"] >= took[0] - 1e-6
    assert second["at"] + second["took"] <= found.story["took"] <= after - before
    assert before - 0.001 <= found.story["at"] <= after
    assert found.story["process"] == f"{socket.gethostname()}/{os.getpid()}"
    assert found.story["error"] is None


def test_a_skipped_handler_is_told_of_with_the_reason(told: str, evt: Event) -> None:
    """Its condition was false, or raised."""

    def doubtful(sender: object) -> bool:
        raise LookupError("no such customer")

    on(evt, name="shop.rich", condition=lambda sender: False)(nothing())
    on(evt, name="shop.known", condition=doubtful)(nothing())
    on(evt, name="shop.queue", condition=lambda sender: False, offload=True)(nothing())
    emit(evt, "ada")
    found = only()
    assert set(found.outcomes.values()) == {"skipped"}
    assert {turn["handler"]: turn["why"] for turn in found.story["handlers"]} == {
        "shop.rich": "condition is false",
        "shop.known": "condition raised LookupError: no such customer",
        "shop.queue": "condition is false",
    }


def test_a_failure_that_stops_nothing_is_told_of(told: str, evt: Event) -> None:
    """Of a handler with on_error="log"."""

    @on(evt, name="shop.mail", on_error="log")
    def mail(sender: str) -> None:
        raise ConnectionError("no mail today")

    on(evt, name="shop.stock")(nothing())
    emit(evt, "ada")
    found = only()
    assert found.outcomes == {"shop.mail": "failed", "shop.stock": "done"}
    assert found.turn("shop.mail")["why"] == "ConnectionError: no mail today"
    assert found.story["error"] is None


def test_an_async_handler_that_nobody_waits_for_is_started(told: str, evt: Event) -> None:
    """The emission does not wait for it, nor does its record."""
    go = threading.Event()

    @on(evt, name="shop.mail")
    async def mail(sender: str) -> None:
        await asyncio.to_thread(go.wait)

    emit(evt, "ada")
    found = only()
    go.set()
    assert drain(20)
    assert found.outcomes == {"shop.mail": "started"}
    assert "took" not in found.turn("shop.mail")


def test_what_is_awaited_is_done(told: str, evt: Event) -> None:
    """Of emit_async, with their times."""

    @on(evt, name="shop.mail")
    async def mail(sender: str) -> None:
        await asyncio.sleep(0)

    on(evt, name="shop.stock")(nothing())
    asyncio.run(emit_async(evt, "ada"))
    found = only()
    assert found.outcomes == {"shop.mail": "done", "shop.stock": "done"}
    assert 0 < found.turn("shop.mail")["took"] <= found.story["took"]


def test_an_untracked_delivery_is_queued(told: str, evt: Event) -> None:
    """With its promise, and its Celery task id to look for in Flower: it has no row of its own."""
    on(evt, name="shop.mail", offload={"delivery": "broker"})(nothing())
    emission = emit(evt, "ada")
    assert only().turn("shop.mail") == {
        "handler": "shop.mail",
        "outcome": "queued",
        "id": emission.offloaded["shop.mail"],
        "delivery": "broker",
    }


def test_a_tracked_delivery_is_told_of_by_its_own_row(evt: Event, app: Celery) -> None:
    """And not once more in that of its emission."""
    on(evt, name="shop.mail", offload=True)(nothing())
    emit(evt, "ada")
    assert only().outcomes == {}
    assert [entry.handler for entry in operations.read_deliveries()] == ["shop.mail"]


def test_an_error_that_cannot_be_told_is_recorded(told: str, evt: Event) -> None:
    """Its message raises itself; the emission goes on as if it were any other."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @on(evt, name="shop.odd", on_error="log")
    def odd(sender: str) -> None:
        raise Odd

    emit(evt, "ada")
    assert only().turn("shop.odd")["why"] == "Odd: <exception str() failed>"


def test_a_long_reason_is_cut(told: str, evt: Event) -> None:
    """A row does not grow with what a handler says."""

    @on(evt, name="shop.chatty", on_error="log")
    def chatty(sender: str) -> None:
        raise LookupError("x" * 10_000)

    def doubtful(sender: object) -> bool:
        raise LookupError("x" * 10_000)

    on(evt, name="shop.doubtful", condition=doubtful)(nothing())
    emit(evt, "ada")
    assert {len(turn["why"]) for turn in only().story["handlers"]} == {500}


def test_the_sender_is_shown_as_monitoring_shows_it(told: str, evt: Event) -> None:
    """By class and id, and with the fields that its class names."""
    emit(evt, Parcelled(id="p1", weight=7))
    assert only().sender == "Parcelled:p1 weight=7"
