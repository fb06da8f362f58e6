"""Async handlers under `emit`: contract section 4."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from nitro.infrastructure.events import Event, drain, drain_async, emit, emit_async, on

WAIT = 10


def test_async_handlers_run_without_a_loop(evt: Event) -> None:
    """Without a running loop `emit` starts async handlers in another thread and does not wait."""
    go, done = threading.Event(), []

    @on(evt)
    async def handler(sender: object) -> str:
        await asyncio.to_thread(go.wait, WAIT)
        done.append(threading.get_ident())
        return "never a result"

    assert emit(evt) == []
    assert done == []
    go.set()
    assert drain(WAIT)
    assert done != [threading.get_ident()]


def test_there_is_one_background_loop(evt: Event) -> None:
    """Handlers of all emitting threads share one loop, so that pooled clients can be kept."""
    loops: list[object] = []

    @on(evt)
    async def handler(sender: object) -> None:
        loops.append(asyncio.get_running_loop())

    threads = [threading.Thread(target=emit, args=(evt,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drain(WAIT)
    assert len(loops) == 4
    assert len(set(loops)) == 1


def test_async_handlers_run_on_the_running_loop(evt: Event) -> None:
    """On a running loop async handlers are its tasks, started but not awaited."""
    seen: list[object] = []

    @on(evt)
    async def handler(sender: object) -> None:
        seen.append(asyncio.get_running_loop())

    async def main() -> None:
        emit(evt)
        assert seen == []
        await asyncio.wait_for(drain_async(), WAIT)
        assert seen == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_async_generators_are_drained_to_the_end(evt: Event) -> None:
    """An async generator under `emit` runs to its end, and a False that it yields cancels nothing."""
    steps: list[object] = []

    @on(evt)
    async def handler(sender: object) -> Any:
        for value in (1, False, 3):
            steps.append(value)
            yield value

    assert emit(evt) == []
    assert drain(WAIT)
    assert steps == [1, False, 3]


def test_async_handlers_cannot_cancel(evt: Event, queue: Any) -> None:
    """The False of an async handler that is not awaited cancels nothing."""

    @on(evt, priority=1)
    async def handler(sender: object) -> bool:
        return False

    on(evt)(lambda sender: "ran")
    on(evt, offload=True, name="mail")(lambda sender: None)
    emission = emit(evt)
    assert drain(WAIT)
    assert emission == ["ran"]
    assert emission.cancelled_by is None
    assert queue.queued == ["mail"]


def test_cancellation_stops_async_handlers_behind_it(evt: Event) -> None:
    """A cancellation keeps async handlers of lower priority from starting, and no earlier one."""
    ran: list[str] = []

    def add(name: str, priority: int) -> None:
        @on(evt, priority=priority)
        async def handler(sender: object) -> None:
            ran.append(name)

    add("before", 1)
    add("after", -1)
    on(evt)(lambda sender: False)
    emit(evt)
    assert drain(WAIT)
    assert ran == ["before"]


def test_function_that_returns_a_coroutine_is_async(evt: Event) -> None:
    """A coroutine that a function returns is started and not awaited, as of an async handler."""
    ran: list[str] = []

    async def work() -> str:
        ran.append("awaited")
        return "no result"

    evt.connect(lambda sender: work())
    assert emit(evt) == []
    assert drain(WAIT)
    assert ran == ["awaited"]


@pytest.mark.parametrize("on_error", ["raise", "log"])
def test_failures_are_logged_with_handler_and_event(
    evt: Event, caplog: pytest.LogCaptureFixture, on_error: Any
) -> None:
    """The failure of an async handler is logged with its traceback, because `emit` has returned."""

    @on(evt, on_error=on_error, name="shop.reserve")
    async def handler(sender: object) -> None:
        raise ValueError("no stock")

    emission = emit(evt)
    assert drain(WAIT)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "shop.reserve" in record.getMessage()
    assert evt.name in record.getMessage()
    assert record.exc_info is not None
    assert list(emission.failed) == ["shop.reserve"]


def test_handler_that_is_cancelled_by_what_it_awaits_has_failed(evt: Event, caplog: pytest.LogCaptureFixture) -> None:
    """A CancelledError that a handler raises itself is logged as its failure, not as the end of the loop."""

    @on(evt, name="shop.reserve")
    async def handler(sender: object) -> None:
        raise asyncio.CancelledError

    emission = emit(evt)
    assert drain(WAIT)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "shop.reserve" in record.getMessage()
    assert list(emission.failed) == ["shop.reserve"]


def test_in_a_transaction_they_start_after_the_commit(evt: Event, open_transaction: Any) -> None:
    """Async handlers start after the outermost commit and not before it."""
    ran: list[object] = []

    @on(evt)
    async def handler(sender: object) -> None:
        ran.append(sender)

    emit(evt, "ada")
    assert drain(WAIT)
    assert ran == []
    open_transaction.commit()
    assert drain(WAIT)
    assert ran == ["ada"]


def test_in_a_transaction_they_keep_the_context_of_their_emit(evt: Event, open_transaction: Any) -> None:
    """Async handlers see the context variables of their emit, not the later values of the commit."""
    request: ContextVar[str] = ContextVar("request")
    seen: list[str] = []

    @on(evt)
    async def handler(sender: object) -> None:
        seen.append(request.get())

    request.set("first")
    emit(evt)
    request.set("second")
    open_transaction.commit()
    assert drain(WAIT)
    assert seen == ["first"]


def test_after_a_rollback_they_never_start(evt: Event, open_transaction: Any) -> None:
    """After a rollback no async handler starts, and no coroutine is left that was never awaited."""

    @on(evt)
    async def handler(sender: object) -> None:
        pytest.fail("ran")

    emit(evt)
    open_transaction.callbacks.clear()
    gc.collect()
    assert drain(WAIT)


def test_ended_transaction_is_not_waited_for(evt: Event, open_transaction: Any) -> None:
    """A transaction that has ended postpones nothing."""
    ran: list[object] = []
    open_transaction.is_usable = False

    @on(evt)
    async def handler(sender: object) -> None:
        ran.append(sender)

    emit(evt, "ada")
    assert drain(WAIT)
    assert ran == ["ada"]


@pytest.mark.parametrize("collected", ["before the commit", "before its turn"])
def test_weak_async_handler_that_has_died_is_silent(
    evt: Event, open_transaction: Any, caplog: pytest.LogCaptureFixture, collected: str
) -> None:
    """A weak handler whose function is collected before its start has not failed."""

    async def handler(sender: object) -> None:
        pytest.fail("ran")

    references = [handler]
    if collected == "before its turn":
        open_transaction.is_usable = False
        on(evt, priority=1)(lambda sender: [references.clear(), gc.collect()])
    on(evt, weak=True)(handler)
    del handler
    emission = emit(evt)
    references.clear()
    gc.collect()
    open_transaction.commit()
    assert drain(WAIT)
    assert (caplog.records, emission.failed) == ([], {})


def test_weak_async_handler_that_has_died_has_no_result(evt: Event, caplog: pytest.LogCaptureFixture) -> None:
    """A weak handler whose function is collected has no result under `emit_async`, and no failure."""

    async def handler(sender: object) -> None:
        pytest.fail("ran")

    references = [handler]
    on(evt, weak=True)(handler)
    del handler
    on(evt, priority=1)(lambda sender: [references.clear(), gc.collect()][:0])
    assert asyncio.run(emit_async(evt)) == [[]]
    assert caplog.records == []
