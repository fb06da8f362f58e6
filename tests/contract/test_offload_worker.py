"""In the worker: contract section 6, with a worker in a thread of this process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextvars import Context
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery

from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload

Work = Callable[..., Any]
ONCE = Offload(max_retries=0)


def test_handler_is_called_with_sender_and_arguments(evt: Event, app: Celery, work: Work) -> None:
    """What was emitted arrives equal, in another process or thread."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any, *args: Any, **kwargs: Any) -> str:
        return repr((sender, args, kwargs))

    worker = work(app)
    when = datetime(2026, 1, 2, tzinfo=UTC)
    assert worker.only(emit(evt, ("ada", 1), {2, 3}, when=when)) == repr((("ada", 1), ({2, 3},), {"when": when}))


def test_handler_runs_in_the_worker(evt: Event, app: Celery, work: Work) -> None:
    """An offloaded handler takes no time of the emitter's thread."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any) -> int:
        return threading.get_ident()

    assert work(app).only(emit(evt)) != threading.get_ident()


def test_each_handler_is_a_task_of_its_own_name(evt: Event, app: Celery) -> None:
    """`inspect registered` and Flower list handlers by their names."""
    on(evt, offload=True, name="shop.first")(lambda sender: None)
    on(evt, offload=True, name="shop.second")(lambda sender: None)
    assert {"shop.first", "shop.second"} <= set(app.tasks)


def test_async_handler_runs(evt: Event, app: Celery, work: Work) -> None:
    """An `async def` handler is awaited, and what it returns is the result."""

    @on(evt, offload=True, name="shop.handler")
    async def handler(sender: Any) -> str:
        await asyncio.sleep(0)
        return f"hello {sender}"

    assert work(app).only(emit(evt, "ada")) == "hello ada"


def test_async_handlers_share_one_loop(evt: Event, app: Celery, work: Work) -> None:
    """The loop outlives a task, so that pooled clients do."""
    loops = []

    @on(evt, offload=True, name="shop.handler")
    async def handler(sender: Any) -> None:
        loops.append(asyncio.get_running_loop())

    worker = work(app)
    worker.only(emit(evt))
    worker.only(emit(evt))
    assert loops[0] is loops[1]
    assert not loops[0].is_closed()


def test_async_handlers_run_at_once_under_threads(evt: Event, app: Celery, work: Work) -> None:
    """Handlers of a thread pool meet inside: none waits for another's end."""
    inside = 0
    all_inside: list[asyncio.Event] = []

    @on(evt, offload=ONCE, name="shop.handler")
    async def handler(sender: Any) -> str:
        nonlocal inside
        inside += 1
        if not all_inside:
            all_inside.append(asyncio.Event())
        if inside == 3:
            all_inside[0].set()
        await asyncio.wait_for(all_inside[0].wait(), 10)
        return "met"

    worker = work(app, pool="threads", concurrency=3)
    emissions = [emit(evt) for _ in range(3)]
    assert [worker.only(emission) for emission in emissions] == ["met"] * 3


def test_leftover_coroutine_is_cancelled_with_a_warning(
    evt: Event, app: Celery, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    """What a handler leaves running never leaks into the next task, and the log says whose it was."""
    cancelled = threading.Event()

    async def forgotten() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    @on(evt, offload=True, name="shop.careless")
    async def careless(sender: Any) -> str:
        task = asyncio.create_task(forgotten())
        await asyncio.sleep(0)
        return f"left {task.done()}"

    assert work(app).only(emit(evt)) == "left False"
    assert cancelled.is_set()
    assert [r.levelno for r in caplog.records if "shop.careless" in r.getMessage()] == [logging.WARNING]


def test_generator_is_drained_and_its_values_are_the_result(evt: Event, app: Celery, work: Work) -> None:
    """The result of a generator is the list of what it yielded."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any) -> Any:
        yield from (1, 2, 3)

    assert work(app).only(emit(evt)) == [1, 2, 3]


def test_async_generator_is_drained(evt: Event, app: Celery, work: Work) -> None:
    """The fourth kind of handler runs too."""

    @on(evt, offload=True, name="shop.handler")
    async def handler(sender: Any) -> Any:
        for number in (1, 2):
            await asyncio.sleep(0)
            yield number

    assert work(app).only(emit(evt)) == [1, 2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_generator_yields_is_progress(evt: Event, app: Celery, work: Work, asynchronous: bool) -> None:
    """While it runs, the result backend holds the last value and how many there were."""
    seen: list[Any] = []

    def look() -> None:
        result = app.AsyncResult(app.current_task.request.id)
        seen.append((result.state, result.info))

    def plain(sender: Any) -> Any:
        for value in ("packed", {"sent": 2}):
            yield value
            look()

    async def waiting(sender: Any) -> Any:
        for value in ("packed", {"sent": 2}):
            yield value
            result = app.AsyncResult(ids[0])
            seen.append((result.state, result.info))

    on(evt, offload=True, name="shop.handler")(waiting if asynchronous else plain)
    ids: list[str] = []
    started = work
    emission = emit(evt)
    ids += emission.offloaded.values()
    started(app).only(emission)
    assert seen == [
        ("PROGRESS", {"step": 1, "value": "packed"}),
        ("PROGRESS", {"step": 2, "value": {"sent": 2}}),
    ]


def test_progress_that_json_cannot_carry_is_shown_as_text(evt: Event, app: Celery, work: Work) -> None:
    """A value yielded for the log never fails the task."""
    seen = []

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any) -> Any:
        yield {1, 2}
        seen.append(app.AsyncResult(app.current_task.request.id).info)

    emission = emit(evt)
    assert work(app).state(emission) == "SUCCESS"
    assert seen == [{"step": 1, "value": "{1, 2}"}]


@pytest.mark.parametrize("result", [None, 3, "text", [1, {"a": None}], False])
def test_result_that_json_carries_is_kept(evt: Event, app: Celery, work: Work, result: Any) -> None:
    """The return value is the task's result; False cancels nothing there."""
    on(evt, offload=True, name="shop.handler")(lambda sender: result)
    emission = emit(evt)
    worker = work(app)
    assert worker.only(emission) == result
    assert worker.state(emission) == "SUCCESS"


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


UNCARRIED = [object(), {1, 2}, {(1, 2): 3}, [lambda: None], 10**5000, Hostile()]


@pytest.mark.parametrize("result", UNCARRIED, ids=["object", "set", "keys", "lambda", "huge", "hostile"])
def test_result_that_json_cannot_carry_becomes_none_with_a_warning(
    evt: Event, app: Celery, work: Work, caplog: pytest.LogCaptureFixture, result: Any
) -> None:
    """An effect that is done is no failure because of what its handler returned."""
    on(evt, offload=True, name="shop.handler")(lambda sender: result)
    emission = emit(evt)
    worker = work(app)
    assert worker.only(emission) is None
    assert worker.state(emission) == "SUCCESS"
    assert [r.levelno for r in caplog.records if "shop.handler" in r.getMessage()] == [logging.WARNING]


def test_cyclic_result_becomes_none(evt: Event, app: Celery, work: Work) -> None:
    """A list that holds itself is one more thing that JSON cannot carry."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any) -> Any:
        result: list[Any] = []
        result.append(result)
        return result

    assert work(app).state(emit(evt)) == "SUCCESS"


def test_raising_fails_the_task(evt: Event, app: Celery, work: Work) -> None:
    """The state is FAILURE and the result is the exception, as of any task."""

    @on(evt, offload=ONCE, name="shop.handler")
    def handler(sender: Any) -> None:
        raise ValueError("no stock")

    emission = emit(evt)
    worker = work(app)
    assert worker.state(emission) == "FAILURE"
    assert repr(worker.only(emission)) == "ValueError('no stock')"


def test_failure_in_one_handler_leaves_the_others_alone(evt: Event, app: Celery, work: Work) -> None:
    """Side effects are independent of each other."""

    @on(evt, offload=ONCE, name="shop.failing")
    def failing(sender: Any) -> None:
        raise ValueError("no stock")

    on(evt, offload=ONCE, name="shop.fine")(lambda sender: "fine")
    emission = emit(evt)
    assert work(app).of(emission.offloaded["shop.fine"]) == "fine"


def test_other_tasks_of_the_app_work_as_before(evt: Event, app: Celery, work: Work) -> None:
    """Binding an app changes nothing for tasks that are no handlers."""

    @app.task(name="shop.plain", shared=False)
    def plain(left: int, right: int = 1) -> int:
        return left + right

    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    worker = work(app)
    assert worker.of(plain.delay(2, right=3).id) == 5


def test_task_of_a_fresh_context_survives_its_handler(evt: Event, app: Celery, work: Work) -> None:
    """A pooled client starts its reader outside of the handler's context, and nobody ends it with the handler."""
    readers: list[asyncio.Task[Any]] = []

    @on(evt, offload=ONCE, name="shop.pooled")
    async def pooled(sender: Any) -> bool:
        if not readers:
            readers.append(asyncio.create_task(asyncio.Event().wait(), context=Context()))
            return True
        reader = readers.pop()
        return reader.done() or not reader.cancel()

    worker = work(app)
    assert [worker.only(emit(evt)) for _ in range(2)] == [True, False]
