"""The record of an emission that was cancelled, that raised, or that was interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from nitro.errors import PayloadError
from nitro.infrastructure.events import Event, emit, emit_async, on
from support.journals import only

pytestmark = pytest.mark.usefixtures("journal_on")


def new_handler() -> Callable[..., None]:
    """Returns a new handler that does nothing."""
    return lambda sender, **kwargs: None


@pytest.mark.parametrize("kind", ["sync", "generator"])
def test_a_cancelled_emission_is_recorded(evt: Event, app: Celery, kind: str) -> None:
    """A cancelled emission records the handler that cancelled it, and no later handler."""

    def generator(sender: str) -> Iterator[object]:
        yield 1
        yield False

    gates: dict[str, Any] = {"sync": lambda sender: False, "generator": generator}
    on(evt, name="shop.before", priority=9)(new_handler())
    on(evt, name="shop.gate", priority=5)(gates[kind])
    on(evt, name="shop.after")(new_handler())
    on(evt, name="shop.mail", offload=True)(new_handler())
    emit(evt, "ada")
    assert only().outcomes == {"shop.before": "done", "shop.gate": "cancelled"}


def test_an_emission_that_raised_is_recorded(evt: Event, app: Celery) -> None:
    """An emission that raised records the failing handler and its error."""

    @on(evt, name="shop.check")
    def check(sender: str) -> None:
        raise LookupError("no stock")

    on(evt, name="shop.before", priority=1)(new_handler())
    on(evt, name="shop.mail", offload=True)(new_handler())
    with pytest.raises(LookupError):
        emit(evt, "ada")
    record = only()
    assert record.outcomes == {"shop.before": "done", "shop.check": "raised"}
    assert (record.turn("shop.check")["why"], record.story["error"]) == ("LookupError: no stock",) * 2


def test_an_interrupted_emission_is_recorded(evt: Event) -> None:
    """A KeyboardInterrupt is recorded as the outcome of the running handler."""

    @on(evt, name="shop.slow")
    def slow(sender: str) -> None:
        raise KeyboardInterrupt

    on(evt, name="shop.before", priority=1)(new_handler())
    with pytest.raises(KeyboardInterrupt):
        emit(evt, "ada")
    assert only().outcomes == {"shop.before": "done", "shop.slow": "raised"}


def test_what_cannot_be_queued_is_no_error_of_a_handler(evt: Event, app: Celery) -> None:
    """A payload error is recorded as the error of the emission, and not of a handler."""
    on(evt, name="shop.stock")(new_handler())
    on(evt, name="shop.mail", offload=True)(new_handler())
    with pytest.raises(PayloadError):
        emit(evt, "ada", file=object())
    record = only()
    assert record.outcomes == {"shop.stock": "done"}
    assert record.story["error"].startswith("PayloadError: ")


def test_one_awaited_failure_is_told_of(evt: Event) -> None:
    """A failure of an awaited handler is recorded; its sibling is recorded as done."""

    @on(evt, name="shop.mail")
    async def mail(sender: str) -> None:
        raise ConnectionError("no mail")

    @on(evt, name="shop.books")
    async def books(sender: str) -> None: ...

    with pytest.raises(ConnectionError):
        asyncio.run(emit_async(evt, "ada"))
    record = only()
    assert record.outcomes == {"shop.mail": "raised", "shop.books": "done"}
    assert record.turn("shop.mail")["why"] == "ConnectionError: no mail"


def test_each_of_several_failures_is_told_of(evt: Event) -> None:
    """Several failures are recorded with their own errors."""

    @on(evt, name="shop.mail")
    async def mail(sender: str) -> None:
        raise ConnectionError("no mail")

    @on(evt, name="shop.books")
    def books(sender: str) -> None:
        raise LookupError("no book")

    with pytest.raises(ExceptionGroup):
        asyncio.run(emit_async(evt, "ada"))
    record = only()
    assert record.outcomes == {"shop.mail": "raised", "shop.books": "raised"}
    assert record.turn("shop.mail")["why"] == "ConnectionError: no mail"
    assert record.turn("shop.books")["why"] == "LookupError: no book"


def test_a_handler_that_is_cut_short_is_not_done(evt: Event) -> None:
    """A handler that is cancelled while it is awaited, as by a disconnected client, is recorded as started."""

    async def cancel_emission() -> None:
        started = asyncio.Event()

        @on(evt, name="shop.slow")
        async def slow(sender: str) -> None:
            started.set()
            await asyncio.Event().wait()

        emitting = asyncio.create_task(emit_async(evt, "ada"))
        await started.wait()
        emitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await emitting

    asyncio.run(cancel_emission())
    record = only()
    assert record.outcomes == {"shop.slow": "started"}
    assert record.story["error"] == "CancelledError: "
