"""`task_always_eager`: handlers run where they are emitted, as Celery's tests want it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from nitro.errors import PayloadError
from nitro.infrastructure.events import Event, emit, emit_async, on
from nitro.infrastructure.offload import bind, current_delivery


@pytest.fixture
def eager(make_app: Callable[..., Celery]) -> Celery:
    """A bound app that runs tasks at once, and whose broker nobody can reach."""
    return bind(make_app(task_always_eager=True, broker_url="redis://127.0.0.1:1/0"))


def test_handler_runs_at_once(evt: Event, eager: Celery) -> None:
    """No broker is needed, not even reachable."""
    ran: list[Any] = []
    on(evt, offload=True, name="shop.handler")(lambda sender, **kwargs: ran.append((sender, kwargs)))
    emit(evt, "ada", tags={1, 2})
    assert ran == [("ada", {"tags": {1, 2}})]


def test_handler_gets_what_a_worker_would_give_it(evt: Event, eager: Celery) -> None:
    """Arguments go through the codec: a copy arrives, and what cannot travel is found out."""
    ran: list[Any] = []
    on(evt, offload=True, name="shop.handler")(lambda sender, **kwargs: ran.append(kwargs["items"]))
    items = [1]
    emit(evt, "ada", items=items)
    assert ran == [items]
    assert ran[0] is not items
    with pytest.raises(PayloadError):
        emit(evt, object(), items=items)


def test_task_id_is_the_promised_one(evt: Event, eager: Celery) -> None:
    """The ids in `Emission.offloaded` are those that the handlers ran under."""
    seen: list[str] = []
    on(evt, offload=True, name="shop.handler")(lambda sender: seen.append(handler.task.request.id))
    handler: Any = next(iter(evt.receivers.values()))
    assert list(emit(evt).offloaded.values()) == seen


def test_async_handler_runs_without_a_loop(evt: Event, eager: Celery) -> None:
    """An `async def` handler is awaited before `emit` returns."""
    ran: list[Any] = []

    @on(evt, offload=True, name="shop.handler")
    async def handler(sender: Any) -> None:
        await asyncio.sleep(0)
        ran.append(sender)

    emit(evt, "ada")
    assert ran == ["ada"]


@pytest.mark.parametrize("emitting", ["emit", "emit_async"])
def test_async_handler_runs_inside_a_loop(evt: Event, eager: Celery, emitting: str) -> None:
    """A running loop does not get in its way."""
    ran: list[Any] = []

    @on(evt, offload=True, name="shop.handler")
    async def handler(sender: Any) -> None:
        await asyncio.sleep(0)
        ran.append(sender)

    async def main() -> None:
        if emitting == "emit":
            emit(evt, "ada")
        else:
            await emit_async(evt, "ada")

    asyncio.run(main())
    assert ran == ["ada"]


def test_failure_stays_in_the_task(evt: Event, eager: Celery) -> None:
    """As in a worker, a failing handler does not reach the emitter; the others run."""
    ran: list[Any] = []

    @on(evt, offload={"max_retries": 0}, name="shop.failing")
    def failing(sender: Any) -> None:
        raise ValueError("no stock")

    on(evt, offload=True, name="shop.fine")(lambda sender: ran.append(sender))
    emit(evt, "ada")
    assert ran == ["ada"]


@pytest.mark.parametrize("error", [ValueError, ConnectionError])
def test_eager_propagation_raises_the_handlers_own_error(evt: Event, eager: Celery, error: type[Exception]) -> None:
    """With `task_eager_propagates` a test sees the exception itself, also one that a broker could have raised."""
    eager.conf.task_eager_propagates = True

    @on(evt, offload={"max_retries": 0}, name="shop.failing")
    def failing(sender: Any) -> None:
        raise error("no stock")

    with pytest.raises(error, match="no stock"):
        emit(evt, "ada")


def test_retries_happen_at_once(evt: Event, eager: Celery) -> None:
    """A handler that fails twice has run three times when `emit` returns."""
    attempts: list[int] = []

    @on(evt, offload=True, name="shop.flaky")
    def flaky(sender: Any) -> None:
        delivery = current_delivery()
        assert delivery is not None
        attempts.append(delivery.attempt)
        if delivery.attempt < 3:
            raise ValueError("again")

    emit(evt, "ada")
    assert attempts == [1, 2, 3]


def test_cause_is_known(evt: Event, eager: Celery) -> None:
    """What a handler emits knows the emission that queued it."""
    inner = Event("inner")
    found = []
    on(evt, offload=True, name="shop.handler")(lambda sender: found.append(emit(inner)))
    outer = emit(evt)
    assert [(emission.parent, emission.root) for emission in found] == [(outer.id, outer.id)]
    assert emit(inner).parent is None
