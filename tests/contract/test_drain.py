"""`drain`, `drain_async`, and loops that close: contract section 4."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from nitro.errors import WrongThread
from nitro.infrastructure.events import Event, drain, drain_async, emit, on

WAIT = 10


def test_drain_also_waits_for_what_they_start(evt: Event) -> None:
    """`drain` waits for a whole chain of emissions."""
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
    """`drain` returns False after `timeout` seconds, and True when all handlers have finished."""
    go = threading.Event()

    @on(evt)
    async def handler(sender: object) -> None:
        await asyncio.to_thread(go.wait, WAIT)

    emit(evt)
    assert drain(0.01) is False
    go.set()
    assert drain(WAIT) is True


def test_drain_on_a_loops_thread_is_an_error(evt: Event) -> None:
    """`drain` on the thread of a loop would block it for ever, so it raises and names `drain_async`."""

    async def main() -> None:
        drain()

    with pytest.raises(WrongThread, match="drain_async"):
        asyncio.run(main())


def test_drain_async_waits_for_the_background_loop_too(evt: Event) -> None:
    """`drain_async` waits also for handlers that a thread without a loop has started."""
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
    """`drain_async` in a handler waits for the handlers that it has started, and not for itself."""
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
    """`asyncio.run` cancels unfinished handlers at its end; the log names handler and event."""

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
    """Handlers of a closed loop do not delay a later `drain`."""

    @on(evt)
    async def handler(sender: object) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        emit(evt)

    asyncio.run(main())
    assert drain(0) is True


@pytest.mark.parametrize("loop", ["running", "background"])
def test_handlers_that_drain_do_not_wait_for_each_other(evt: Event, loop: str) -> None:
    """Two handlers that drain both finish, and a drain outside of them waits for both."""
    ran: list[str] = []

    def add(name: str) -> None:
        @on(evt)
        async def handler(sender: object) -> None:
            await drain_async()
            ran.append(name)

    async def main() -> None:
        emit(evt)
        await asyncio.wait_for(drain_async(), WAIT)

    add("first")
    add("second")
    if loop == "running":
        asyncio.run(main())
    else:
        emit(evt)
        assert drain(WAIT)
    assert sorted(ran) == ["first", "second"]


@pytest.mark.parametrize("loop", ["running", "background"])
def test_chain_of_handlers_that_drain_finishes(evt: Event, loop: str) -> None:
    """Handlers finish although each waits for the handler that it has started."""
    ran: list[int] = []

    @on(evt)
    async def handler(sender: int) -> None:
        if sender:
            emit(evt, sender - 1)
            await drain_async()
        ran.append(sender)

    async def main() -> None:
        emit(evt, 2)
        await asyncio.wait_for(drain_async(), WAIT)

    if loop == "running":
        asyncio.run(main())
    else:
        emit(evt, 2)
        assert drain(WAIT)
    assert sorted(ran) == [0, 1, 2]


def test_dropped_handler_of_a_closed_loop_is_silent(fresh_process: Callable[..., Any]) -> None:
    """A handler of a closed loop logs no failure when it is collected, here in a forked child."""
    source = """
import asyncio, gc, os
from nitro.infrastructure.events import emit, on

@on("order.placed", name="shop.mail")
async def waits(sender):
    await asyncio.sleep(100)

async def main():
    emit("order.placed")
    for _ in range(3):
        await asyncio.sleep(0)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
child = os.fork()
if not child:
    gc.collect()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    process = fresh_process(source)
    assert process.stdout == "0\n"
    assert "Exception ignored" not in process.stderr
    assert "shop.mail" not in process.stderr
