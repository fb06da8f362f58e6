"""The record of an emission: the outcome of each handler with time, process and reason."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable

import pytest
from celery import Celery

from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.events import Event, drain, emit, emit_async, on
from support import outbox
from support.journals import only

TRACKED = ("at-least-once", "exactly-once")


class Parcelled(Entity, table=True):
    """A sender that shows a field."""

    __tablename__ = "story_parcelled"
    __nitro_show__ = ("weight",)

    weight: int = 0


@pytest.fixture(params=["journal", *TRACKED])
def recorder(request: pytest.FixtureRequest, evt: Event, app: Celery) -> str:
    """Records emissions in the journal or in the row of a tracked delivery; returns the name of the recorder."""
    if request.param == "journal":
        request.getfixturevalue("journal_on")
    else:
        on(evt, offload={"delivery": request.param}, name="shop.tracked")(lambda sender, **kwargs: None)
    return str(request.param)


def new_handler() -> Callable[..., None]:
    """Returns a new handler that does nothing."""
    return lambda sender, **kwargs: None


def test_each_inline_handler_is_told_of(recorder: str, evt: Event) -> None:
    """Each inline handler is recorded in the order of the emission, with begin and duration."""
    took: list[float] = []

    @on(evt, name="shop.second")
    def second_(sender: str) -> None:
        begin = time.perf_counter()
        sum(range(10_000))
        took.append(time.perf_counter() - begin)

    on(evt, name="shop.first", priority=5)(new_handler())
    before = time.time()
    emission = emit(evt, "ada")
    after = time.time()
    record = only()
    assert (record.id, record.event, record.sender) == (emission.id, "order.placed", "str")
    assert list(record.outcomes.items()) == [("shop.first", "done"), ("shop.second", "done")]
    first, second = record.turn("shop.first"), record.turn("shop.second")
    assert 0 <= first["at"] <= first["at"] + first["took"] <= second["at"]
    assert second["took"] >= took[0] - 1e-6
    assert second["at"] + second["took"] <= record.story["took"] <= after - before
    assert before - 0.001 <= record.story["at"] <= after
    assert record.story["process"] == f"{socket.gethostname()}/{os.getpid()}"
    assert record.story["error"] is None


def test_a_skipped_handler_is_told_of_with_the_reason(recorder: str, evt: Event) -> None:
    """A skipped handler is recorded with its reason: the condition was false or raised."""

    def doubtful(sender: object) -> bool:
        raise LookupError("no such customer")

    on(evt, name="shop.rich", condition=lambda sender: False)(new_handler())
    on(evt, name="shop.known", condition=doubtful)(new_handler())
    on(evt, name="shop.queue", condition=lambda sender: False, offload=True)(new_handler())
    emit(evt, "ada")
    record = only()
    assert set(record.outcomes.values()) == {"skipped"}
    assert {turn["handler"]: turn["why"] for turn in record.story["handlers"]} == {
        "shop.rich": "condition is false",
        "shop.known": "condition raised LookupError: no such customer",
        "shop.queue": "condition is false",
    }


def test_a_failure_that_stops_nothing_is_told_of(recorder: str, evt: Event) -> None:
    """A failure with on_error="log" is recorded and leaves the emission without an error."""

    @on(evt, name="shop.mail", on_error="log")
    def mail(sender: str) -> None:
        raise ConnectionError("no mail today")

    on(evt, name="shop.stock")(new_handler())
    emit(evt, "ada")
    record = only()
    assert record.outcomes == {"shop.mail": "failed", "shop.stock": "done"}
    assert record.turn("shop.mail")["why"] == "ConnectionError: no mail today"
    assert record.story["error"] is None


def test_an_async_handler_that_nobody_waits_for_is_started(recorder: str, evt: Event) -> None:
    """An async handler that the emission does not await is recorded as started."""
    may_end = threading.Event()

    @on(evt, name="shop.mail")
    async def mail(sender: str) -> None:
        await asyncio.to_thread(may_end.wait)

    emit(evt, "ada")
    record = only()
    may_end.set()
    assert drain(20)
    assert record.outcomes == {"shop.mail": "started"}
    assert "took" not in record.turn("shop.mail")


def test_what_is_awaited_is_done(recorder: str, evt: Event) -> None:
    """Handlers that `emit_async` awaits are recorded as done, with their durations."""

    @on(evt, name="shop.mail")
    async def mail(sender: str) -> None:
        await asyncio.sleep(0)

    on(evt, name="shop.stock")(new_handler())
    asyncio.run(emit_async(evt, "ada"))
    record = only()
    assert record.outcomes == {"shop.mail": "done", "shop.stock": "done"}
    assert 0 < record.turn("shop.mail")["took"] <= record.story["took"]


def test_an_untracked_delivery_is_queued(recorder: str, evt: Event) -> None:
    """An untracked delivery is recorded as queued, with its promise and its Celery task id."""
    on(evt, name="shop.mail", offload={"delivery": "broker"})(new_handler())
    emission = emit(evt, "ada")
    assert only().turn("shop.mail") == {
        "handler": "shop.mail",
        "outcome": "queued",
        "id": emission.offloaded["shop.mail"],
        "delivery": "broker",
    }


def test_a_tracked_delivery_is_told_of_by_its_own_row(evt: Event, app: Celery) -> None:
    """A tracked delivery is recorded in its own row, and not in the record of its emission."""
    on(evt, name="shop.mail", offload=True)(new_handler())
    emit(evt, "ada")
    assert only().outcomes == {}
    assert [entry.handler for entry in outbox.deliveries()] == ["shop.mail"]


def test_an_error_that_cannot_be_told_is_recorded(recorder: str, evt: Event) -> None:
    """An exception whose `str()` raises is recorded under its class."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @on(evt, name="shop.odd", on_error="log")
    def odd(sender: str) -> None:
        raise Odd

    emit(evt, "ada")
    assert only().turn("shop.odd")["why"] == "Odd: <exception str() failed>"


def test_a_long_reason_is_cut(recorder: str, evt: Event) -> None:
    """A long reason is cut to 500 characters."""

    @on(evt, name="shop.chatty", on_error="log")
    def chatty(sender: str) -> None:
        raise LookupError("x" * 10_000)

    def doubtful(sender: object) -> bool:
        raise LookupError("x" * 10_000)

    on(evt, name="shop.doubtful", condition=doubtful)(new_handler())
    emit(evt, "ada")
    assert {len(turn["why"]) for turn in only().story["handlers"]} == {500}


def test_the_sender_is_shown_as_monitoring_shows_it(recorder: str, evt: Event) -> None:
    """The sender is recorded by class, id and the fields that its class shows."""
    emit(evt, Parcelled(id="p1", weight=7))
    assert only().sender == "Parcelled:p1 weight=7"
