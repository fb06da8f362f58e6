"""Cancellation and failure in `emit_async`: contract section 4."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nitro.infrastructure.events import Event, emit_async, on


def run(evt: Event, *args: Any, **kwargs: Any) -> Any:
    """Emits on a loop of its own, with a timeout."""
    return asyncio.run(asyncio.wait_for(emit_async(evt, *args, **kwargs), 10))


@pytest.mark.parametrize("kind", ["coroutine", "async generator", "function", "generator"])
def test_false_stops_lower_priorities_and_the_queue(evt: Event, queue: Any, kind: str) -> None:
    """A False of any kind of handler cancels lower priorities and offloaded handlers."""

    async def coroutine(sender: object) -> bool:
        return False

    async def async_generator(sender: object) -> Any:
        yield False

    def generator(sender: object) -> Any:
        yield False

    handlers: Any = {
        "coroutine": coroutine,
        "async generator": async_generator,
        "generator": generator,
        "function": lambda sender: False,
    }
    on(evt, name="gate")(handlers[kind])
    on(evt, priority=-1)(lambda sender: pytest.fail("ran"))
    on(evt, priority=9, offload=True)(lambda sender: None)
    emission = run(evt)
    assert emission == ([[False]] if "generator" in kind else [False])
    assert emission.cancelled_by == "gate"
    assert queue.steps == []


def test_async_generator_that_yields_false_is_closed_there(evt: Event) -> None:
    """An async generator that yields False is closed before `emit_async` returns, and its cleanup runs."""
    steps: list[str] = []

    @on(evt)
    async def gate(sender: object) -> Any:
        try:
            yield 1
            yield False
            steps.append("went on")
        finally:
            await asyncio.sleep(0)
            steps.append("closed")

    assert run(evt) == [[1, False]]
    assert steps == ["closed"]


def test_siblings_of_a_cancelling_handler_finish(evt: Event) -> None:
    """All handlers of one priority run before a cancellation counts; the first in plan order is named."""
    on(evt, name="first gate")(lambda sender: False)
    on(evt)(lambda sender: "sync sibling")

    @on(evt)
    async def sibling(sender: object) -> str:
        await asyncio.sleep(0)
        return "async sibling"

    on(evt, name="second gate")(lambda sender: False)
    emission = run(evt)
    assert emission == [False, "sync sibling", "async sibling", False]
    assert emission.cancelled_by == "first gate"


def test_siblings_of_a_failing_handler_finish(evt: Event, queue: Any) -> None:
    """All handlers of one priority run before a failure counts; lower and offloaded ones do not run."""
    steps: list[str] = []
    on(evt)(lambda sender: 1 / 0)
    on(evt)(lambda sender: steps.append("sync sibling"))

    @on(evt)
    async def sibling(sender: object) -> None:
        await asyncio.sleep(0)
        steps.append("async sibling")

    on(evt, priority=-1)(lambda sender: steps.append("lower"))
    on(evt, offload=True)(lambda sender: None)
    with pytest.raises(ZeroDivisionError):
        run(evt)
    assert steps == ["sync sibling", "async sibling"]
    assert queue.steps == []


def test_single_failure_is_raised_as_it_is(evt: Event) -> None:
    """A single exception is raised itself, with the handler's name in a note."""
    error = ValueError("no stock")

    @on(evt, name="shop.reserve")
    async def reserve(sender: object) -> None:
        raise error

    with pytest.raises(ValueError, match="no stock") as caught:
        run(evt)
    assert caught.value is error
    assert any("shop.reserve" in note for note in error.__notes__)


def test_several_failures_are_a_group(evt: Event) -> None:
    """Several exceptions are raised as a group, in plan order."""

    @on(evt)
    async def first(sender: object) -> None:
        raise ValueError("first")

    @on(evt)
    def second(sender: object) -> None:
        raise KeyError("second")

    with pytest.raises(ExceptionGroup) as caught:
        run(evt)
    assert [type(error) for error in caught.value.exceptions] == [ValueError, KeyError]


def test_failure_beats_cancellation(evt: Event) -> None:
    """A failure wins over a cancellation of the same priority."""
    on(evt)(lambda sender: False)

    @on(evt)
    async def failing(sender: object) -> None:
        raise ValueError("beats")

    with pytest.raises(ValueError, match="beats"):
        run(evt)


def test_returned_exception_is_a_result(evt: Event) -> None:
    """Returning an exception is not raising it."""

    @on(evt)
    async def handler(sender: object) -> ValueError:
        return ValueError("returned")

    (result,) = run(evt)
    assert isinstance(result, ValueError)


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()])
def test_on_error_log_lets_the_rest_go_on(evt: Event, caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    """With `on_error="log"` an async handler that fails or raises CancelledError is logged and listed."""

    @on(evt, on_error="log", name="shop.audit")
    async def audit(sender: object) -> None:
        raise error

    on(evt, priority=-1)(lambda sender: "ran")
    emission = run(evt)
    assert emission == ["ran"]
    assert emission.failed == {"shop.audit": error}
    assert "shop.audit" in caplog.text


def test_cancelling_the_emitter_cancels_its_handlers(evt: Event) -> None:
    """Cancelling the task of `emit_async` cancels its handlers, also with `on_error="log"`."""
    steps: list[str] = []

    @on(evt, on_error="log")
    async def handler(sender: asyncio.Event) -> None:
        try:
            sender.set()
            await asyncio.Event().wait()
        finally:
            steps.append("ended")

    async def main() -> None:
        started = asyncio.Event()
        emitting = asyncio.create_task(emit_async(evt, started))
        await started.wait()
        emitting.cancel()
        await emitting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert steps == ["ended"]
