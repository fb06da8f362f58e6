"""`drain`, `drain_async`, and loops that close: contract section 4."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from nitro.errors import WrongThread
from nitro.infrastructure.events import Event, drain, drain_async, emit, on

WAIT = 10


def test_drain_also_waits_for_what_they_start(evt: Event) -> None:
    """A chain of emissions is one piece of work."""
    ran: list[int] = []

    @on(evt)
    async def handler(sender: int) -> None:
        await asyncio.sleep(0)
        ran.append(sender)
        if sender:
            emit(evt, sender - 1)

    emit(evt, 3)
    assert drain(WAIT)
    assert ran == [3, 2, 1, 0]


def test_drain_says_whether_all_have_finished(evt: Event) -> None:
    """After `timeout` seconds it gives up and says so."""
    go = threading.Event()

    @on(evt)
    async def handler(sender: object) -> None:
        await asyncio.to_thread(go.wait, WAIT)

    emit(evt)
    assert drain(0.01) is False
    go.set()
    assert drain(WAIT) is True


def test_drain_on_a_loops_thread_is_an_error(evt: Event) -> None:
    """It would block the loop for ever; the message names what to use."""

    async def main() -> None:
        drain()

    with pytest.raises(WrongThread, match="drain_async"):
        asyncio.run(main())


def test_drain_async_waits_for_the_background_loop_too(evt: Event) -> None:
    """Handlers that a thread without a loop emitted are waited for as well."""
    ran: list[object] = []

    @on(evt)
    async def handler(sender: object) -> None:
        ran.append(sender)

    async def main() -> None:
        await asyncio.to_thread(emit, evt, "ada")
        await asyncio.wait_for(drain_async(), WAIT)

    asyncio.run(main())
    assert ran == ["ada"]


def test_drain_async_inside_a_handler_does_not_wait_for_itself(evt: Event) -> None:
    """A handler can wait for what it has started."""
    ran: list[object] = []

    @on(evt)
    async def handler(sender: int) -> None:
        if sender:
            emit(evt, sender - 1)
            await drain_async()
        ran.append(sender)

    async def main() -> None:
        emit(evt, 1)
        await asyncio.wait_for(drain_async(), WAIT)

    asyncio.run(main())
    assert ran == [0, 1]


def test_closing_loop_that_cancels_is_a_warning(evt: Event, caplog: pytest.LogCaptureFixture) -> None:
    """`asyncio.run` cancels what still runs; the log names handler and event."""

    @on(evt, name="shop.mail")
    async def handler(sender: object) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        emit(evt)

    asyncio.run(main())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "shop.mail" in record.getMessage()
    assert evt.name in record.getMessage()


def test_closed_loop_leaves_nothing_to_wait_for(evt: Event) -> None:
    """Handlers of a loop that was closed do not hold up a later `drain`."""

    @on(evt)
    async def handler(sender: object) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        emit(evt)

    asyncio.run(main())
    assert drain(0) is True
