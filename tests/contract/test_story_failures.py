"""What is recorded of an emission that was cancelled, that raised, or that was cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from journals import only
from nitro.errors import PayloadError
from nitro.infrastructure.events import Event, emit, emit_async, on

pytestmark = pytest.mark.usefixtures("journal_on")


def nothing() -> Callable[..., None]:
    """A handler of its own."""
    return lambda sender, **kwargs: None


@pytest.mark.parametrize("kind", ["sync", "generator"])
def test_a_cancelled_emission_is_recorded(evt: Event, app: Celery, kind: str) -> None:
    """Who has cancelled it; those after it never had a turn."""

    def generator(sender: str) -> Iterator[object]:
        yield 1
        yield False

    gates: dict[str, Any] = {"sync": lambda sender: False, "generator": generator}
    on(evt, name="shop.before", priority=9)(nothing())
    on(evt, name="shop.gate", priority=5)(gates[kind])
    on(evt, name="shop.after")(nothing())
    on(evt, name="shop.mail", offload=True)(nothing())
    emit(evt, "ada")
    assert only().outcomes == {"shop.before": "done", "shop.gate": "cancelled"}


def test_an_emission_that_raised_is_recorded(evt: Event, app: Celery) -> None:
    """With whose error it was; nothing is queued."""

    @on(evt, name="shop.check")
    def check(sender: str) -> None:
        raise LookupError("no stock")

    on(evt, name="shop.before", priority=1)(nothing())
    on(evt, name="shop.mail", offload=True)(nothing())
    with pytest.raises(LookupError):
        emit(evt, "ada")
    found = only()
    assert found.outcomes == {"shop.before": "done", "shop.check": "raised"}
    assert (found.turn("shop.check")["why"], found.story["error"]) == ("LookupError: no stock",) * 2


def test_an_interrupted_emission_is_recorded(evt: Event) -> None:
    """By Ctrl-C, in the handler that ran just then."""

    @on(evt, name="shop.slow")
    def slow(sender: str) -> None:
        raise KeyboardInterrupt

    on(evt, name="shop.before", priority=1)(nothing())
    with pytest.raises(KeyboardInterrupt):
        emit(evt, "ada")
    assert only().outcomes == {"shop.before": "done", "shop.slow": "raised"}


def test_what_cannot_be_queued_is_no_error_of_a_handler(evt: Event, app: Celery) -> None:
    """The inline ones had ended when the payload turned out to be unfit."""
    on(evt, name="shop.stock")(nothing())
    on(evt, name="shop.mail", offload=True)(nothing())
    with pytest.raises(PayloadError):
        emit(evt, "ada", file=object())
    found = only()
    assert found.outcomes == {"shop.stock": "done"}
    assert found.story["error"].startswith("PayloadError: ")


def test_one_awaited_failure_is_told_of(evt: Event) -> None:
    """Its siblings finish."""

    @on(evt, name="shop.mail")
    async def mail(sender: str) -> None:
        raise ConnectionError("no mail")

    @on(evt, name="shop.books")
    async def books(sender: str) -> None: ...

    with pytest.raises(ConnectionError):
        asyncio.run(emit_async(evt, "ada"))
    found = only()
    assert found.outcomes == {"shop.mail": "raised", "shop.books": "done"}
    assert found.turn("shop.mail")["why"] == "ConnectionError: no mail"


def test_each_of_several_failures_is_told_of(evt: Event) -> None:
    """With its own error."""

    @on(evt, name="shop.mail")
    async def mail(sender: str) -> None:
        raise ConnectionError("no mail")

    @on(evt, name="shop.books")
    def books(sender: str) -> None:
        raise LookupError("no book")

    with pytest.raises(ExceptionGroup):
        asyncio.run(emit_async(evt, "ada"))
    found = only()
    assert found.outcomes == {"shop.mail": "raised", "shop.books": "raised"}
    assert found.turn("shop.mail")["why"] == "ConnectionError: no mail"
    assert found.turn("shop.books")["why"] == "LookupError: no book"


def test_a_handler_that_is_cut_short_is_not_done(evt: Event) -> None:
    """A request that its client has left, say, cancels what it awaits."""

    async def left() -> None:
        begun = asyncio.Event()

        @on(evt, name="shop.slow")
        async def slow(sender: str) -> None:
            begun.set()
            await asyncio.Event().wait()

        emitting = asyncio.create_task(emit_async(evt, "ada"))
        await begun.wait()
        emitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await emitting

    asyncio.run(left())
    found = only()
    assert found.outcomes == {"shop.slow": "started"}
    assert found.story["error"] == "CancelledError: "
