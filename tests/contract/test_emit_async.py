"""`emit_async`: contract section 4."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from nitro.errors import EmitError
from nitro.infrastructure.events import Event, emit_async, on


def run(evt: Event, *args: Any, **kwargs: Any) -> Any:
    """Emits on a loop of its own, with a timeout."""
    return asyncio.run(asyncio.wait_for(emit_async(evt, *args, **kwargs), 10))


def test_every_kind_of_handler_is_awaited(evt: Event) -> None:
    """Functions, coroutines, generators and async generators all give their result."""

    @on(evt)
    def function(sender: object) -> str:
        return "function"

    @on(evt)
    async def coroutine(sender: object) -> str:
        await asyncio.sleep(0)
        return "coroutine"

    @on(evt)
    def generator(sender: object) -> Any:
        yield from (1, 2)

    @on(evt)
    async def async_generator(sender: object) -> Any:
        for value in (3, 4):
            await asyncio.sleep(0)
            yield value

    assert run(evt) == ["function", "coroutine", [1, 2], [3, 4]]


def test_handler_gets_sender_and_arguments(evt: Event) -> None:
    """An async handler gets the sender and all arguments."""

    @on(evt)
    async def handler(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert run(evt, "ada", 1, reason="new") == [(("ada", 1), {"reason": "new"})]


def test_each_async_handler_runs_once(evt: Event) -> None:
    """Five handlers made in a loop are five handlers, not the last one five times."""
    for number in range(5):

        async def handler(sender: object, number: int = number) -> int:
            await asyncio.sleep(0)
            return number

        on(evt)(handler)
    assert run(evt) == [0, 1, 2, 3, 4]


def test_method_emit_async_does_the_same(evt: Event) -> None:
    """`Event.emit_async` is `emit_async` as a method."""

    @on(evt)
    async def handler(sender: object, **kwargs: Any) -> Any:
        return sender, kwargs

    assert asyncio.run(evt.emit_async("ada", reason="new")) == [("ada", {"reason": "new"})]


def test_sync_handlers_of_a_priority_run_first_on_the_loops_thread(evt: Event) -> None:
    """Sync handlers run in order before an async handler of equal priority starts."""
    steps: list[Any] = []

    @on(evt)
    async def coroutine(sender: object) -> None:
        steps.append("async")

    for name in ("first", "second"):
        on(evt)(lambda sender, name=name: steps.append((name, threading.get_ident())))
    run(evt)
    assert steps == [("first", threading.get_ident()), ("second", threading.get_ident()), "async"]


def test_async_handlers_of_a_priority_run_together(evt: Event) -> None:
    """Async handlers of equal priority run concurrently: each waits for the other."""

    @on(evt)
    async def first(sender: Any) -> str:
        sender["first"].set()
        await sender["second"].wait()
        return "first"

    @on(evt)
    async def second(sender: Any) -> str:
        sender["second"].set()
        await sender["first"].wait()
        return "second"

    assert run(evt, {"first": asyncio.Event(), "second": asyncio.Event()}) == ["first", "second"]


def test_lower_priority_starts_after_the_higher_has_finished(evt: Event) -> None:
    """Async handlers of different priority never overlap, with each other or with sync handlers."""
    steps: list[str] = []

    def add(name: str, priority: int) -> None:
        @on(evt, priority=priority)
        async def handler(sender: object) -> None:
            steps.append(f"{name} begins")
            for _ in range(3):
                await asyncio.sleep(0)
            steps.append(f"{name} ends")

    add("low", -1)
    on(evt)(lambda sender: steps.append("sync"))
    add("high", 1)
    run(evt)
    assert steps == ["high begins", "high ends", "sync", "low begins", "low ends"]


def test_results_come_in_plan_order(evt: Event) -> None:
    """Results stand in the order of connection, not in the order in which handlers finish."""
    last = asyncio.Event()

    @on(evt)
    async def waits(sender: object) -> str:
        await last.wait()
        return "connected first"

    @on(evt)
    async def goes(sender: object) -> str:
        last.set()
        return "connected second"

    on(evt)(lambda sender: "sync, connected third")
    on(evt, priority=1)(lambda sender: "high")
    assert run(evt) == ["high", "connected first", "connected second", "sync, connected third"]


def test_function_that_returns_a_coroutine_is_async(evt: Event) -> None:
    """A coroutine that a function returns is awaited."""

    async def work() -> str:
        return "awaited"

    evt.connect(lambda sender: work())
    assert run(evt) == ["awaited"]


def test_publishing_does_not_block_the_loop(evt: Event, queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop runs on during publishing."""
    loop_ran = threading.Event()
    monkeypatch.setattr(queue, "_publish", lambda names: queue.steps.append(loop_ran.wait(10)))
    on(evt, offload=True)(lambda sender: None)

    async def main() -> None:
        emitting = asyncio.create_task(emit_async(evt))
        while "dispatch" not in queue.steps:
            await asyncio.sleep(0)
        loop_ran.set()
        await emitting

    asyncio.run(main())
    assert queue.steps == ["dispatch", True]


def test_publishing_waits_for_the_commit(evt: Event, queue: Any, open_transaction: Any) -> None:
    """Messages of a transaction are published after the commit."""
    on(evt, offload=True, name="mail")(lambda sender: None)
    emission = run(evt)
    assert queue.steps == ["dispatch"]
    assert list(emission.offloaded) == ["mail"]
    open_transaction.commit()
    assert queue.batches == [["mail"]]


def test_condition_skips_an_async_handler(evt: Event) -> None:
    """A condition is asked for every kind of handler."""

    @on(evt, condition=lambda sender: False, name="alert")
    async def alert(sender: object) -> str:
        return "ran"

    emission = run(evt)
    assert emission == []
    assert list(emission.skipped) == ["alert"]


def test_sender_by_keyword_is_a_type_error(evt: Event) -> None:
    """A sender by keyword raises, as in `emit`."""
    with pytest.raises(EmitError, match="sender"):
        run(evt, sender="ada")


@pytest.mark.parametrize("kind", ["task", "future"])
def test_task_or_future_that_a_handler_returns_is_awaited(evt: Event, kind: str) -> None:
    """A task or future that a sync handler returns is awaited, and its result is the handler's."""

    @on(evt)
    def starts(sender: object) -> Any:
        loop = asyncio.get_running_loop()
        if kind == "task":
            return loop.create_task(asyncio.sleep(0, "awaited"))
        future = loop.create_future()
        loop.call_soon(future.set_result, "awaited")
        return future

    assert run(evt) == ["awaited"]
