"""Offloaded handlers in a worker thread of this process: contract section 6."""

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
    """Sender and arguments arrive equal in the worker."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any, *args: Any, **kwargs: Any) -> str:
        return repr((sender, args, kwargs))

    worker = work(app)
    when = datetime(2026, 1, 2, tzinfo=UTC)
    assert worker.only(emit(evt, ("ada", 1), {2, 3}, when=when)) == repr((("ada", 1), ({2, 3},), {"when": when}))


def test_handler_runs_in_the_worker(evt: Event, app: Celery, work: Work) -> None:
    """An offloaded handler runs on another thread than the emit."""

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
    """An `async def` handler is awaited, and its return value is the task's result."""

    @on(evt, offload=True, name="shop.handler")
    async def handler(sender: Any) -> str:
        await asyncio.sleep(0)
        return f"hello {sender}"

    assert work(app).only(emit(evt, "ada")) == "hello ada"


def test_async_handlers_share_one_loop(evt: Event, app: Celery, work: Work) -> None:
    """The event loop outlives a task, so that pooled clients survive."""
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
    """Async handlers of a thread pool run concurrently on the loop."""
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
    """A coroutine that a handler leaves running is cancelled, and a warning names the handler."""
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
    """An async generator handler is drained like a generator."""

    @on(evt, offload=True, name="shop.handler")
    async def handler(sender: Any) -> Any:
        for number in (1, 2):
            await asyncio.sleep(0)
            yield number

    assert work(app).only(emit(evt)) == [1, 2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_generator_yields_is_progress(evt: Event, app: Celery, work: Work, asynchronous: bool) -> None:
    """The result backend holds the last yielded value and the number of values while the handler runs."""
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
    emission = emit(evt)
    ids += emission.offloaded.values()
    work(app).only(emission)
    assert seen == [
        ("PROGRESS", {"step": 1, "value": "packed"}),
        ("PROGRESS", {"step": 2, "value": {"sent": 2}}),
    ]


def test_progress_that_json_cannot_carry_is_shown_as_text(evt: Event, app: Celery, work: Work) -> None:
    """A yielded value that JSON cannot carry is shown as text and does not fail the task."""
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
    """A return value that JSON carries is the task's result; False cancels nothing in a worker."""
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
    """A handler that ran to its end succeeds, although JSON cannot carry its return value."""
    on(evt, offload=True, name="shop.handler")(lambda sender: result)
    emission = emit(evt)
    worker = work(app)
    assert worker.only(emission) is None
    assert worker.state(emission) == "SUCCESS"
    assert [r.levelno for r in caplog.records if "shop.handler" in r.getMessage()] == [logging.WARNING]


def test_cyclic_result_becomes_none(evt: Event, app: Celery, work: Work) -> None:
    """A list that contains itself becomes None, like other values that JSON cannot carry."""

    @on(evt, offload=True, name="shop.handler")
    def handler(sender: Any) -> Any:
        result: list[Any] = []
        result.append(result)
        return result

    assert work(app).state(emit(evt)) == "SUCCESS"


def test_raising_fails_the_task(evt: Event, app: Celery, work: Work) -> None:
    """A raising handler's task has the state FAILURE and the exception as its result."""

    @on(evt, offload=ONCE, name="shop.handler")
    def handler(sender: Any) -> None:
        raise ValueError("no stock")

    emission = emit(evt)
    worker = work(app)
    assert worker.state(emission) == "FAILURE"
    assert repr(worker.only(emission)) == "ValueError('no stock')"


def test_failure_in_one_handler_leaves_the_others_alone(evt: Event, app: Celery, work: Work) -> None:
    """A failing handler leaves the other handlers of its emission unaffected."""

    @on(evt, offload=ONCE, name="shop.failing")
    def failing(sender: Any) -> None:
        raise ValueError("no stock")

    on(evt, offload=ONCE, name="shop.fine")(lambda sender: "fine")
    emission = emit(evt)
    assert work(app).of(emission.offloaded["shop.fine"]) == "fine"


def test_other_tasks_of_the_app_work_as_before(evt: Event, app: Celery, work: Work) -> None:
    """Binding an app leaves its tasks that are no handlers unchanged."""

    @app.task(name="shop.plain", shared=False)
    def plain(left: int, right: int = 1) -> int:
        return left + right

    on(evt, offload=True, name="shop.handler")(lambda sender: None)
    worker = work(app)
    assert worker.of(plain.delay(2, right=3).id) == 5


def test_task_of_a_new_context_survives_its_handler(evt: Event, app: Celery, work: Work) -> None:
    """A task that a handler starts in a new context, as a pooled client does, is not cancelled with the handler."""
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
