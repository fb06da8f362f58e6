"""Causation through a worker, and emits inside its handlers: contract sections 5 and 6."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from nitro.infrastructure.events import Event, Namespace, emit, emit_async, on
from nitro.infrastructure.offload import current_delivery

Work = Callable[..., Any]


@pytest.fixture
def inner() -> Event:
    """The event that a handler emits."""
    return Namespace().event("order.billed")


@pytest.mark.parametrize("kind", ["sync", "async", "async with emit_async", "generator"])
def test_emit_in_a_worker_knows_its_parent(evt: Event, inner: Event, app: Celery, work: Work, kind: str) -> None:
    """An emit in a worker records parent and root, on the handler's thread and on its loop."""
    inner_emissions: list[Any] = []

    def sync(sender: Any) -> None:
        inner_emissions.append(emit(inner))

    async def on_loop(sender: Any) -> None:
        inner_emissions.append(emit(inner))

    async def awaited(sender: Any) -> None:
        inner_emissions.append(await emit_async(inner))

    def generator(sender: Any) -> Any:
        yield inner_emissions.append(emit(inner))

    kinds = {"sync": sync, "async": on_loop, "async with emit_async": awaited, "generator": generator}
    on(evt, offload=True, name="shop.outer")(kinds[kind])
    outer = emit(evt)
    work(app).only(outer)
    assert [(emission.parent, emission.root) for emission in inner_emissions] == [(outer.id, outer.id)]


def test_root_is_the_first_of_a_chain_over_workers(evt: Event, inner: Event, app: Celery, work: Work) -> None:
    """The root of a chain of offloaded handlers is its first emission."""
    third = Namespace().event("third")
    inner_emissions: list[Any] = []
    on(evt, offload=True, name="shop.first")(lambda sender: inner_emissions.append(emit(inner)))
    on(inner, offload=True, name="shop.second")(lambda sender: inner_emissions.append(emit(third)))
    outer = emit(evt)
    worker = work(app)
    worker.only(outer)
    worker.only(inner_emissions[0])
    assert [(emission.parent, emission.root) for emission in inner_emissions] == [
        (outer.id, outer.id),
        (inner_emissions[0].id, outer.id),
    ]


def test_offload_by_an_inline_handler_knows_its_parent(evt: Event, inner: Event, app: Celery, work: Work) -> None:
    """A nested emission of the emitter keeps its root in the worker."""
    roots: list[Any] = []

    @on(inner, offload=True, name="shop.second")
    def second(sender: Any) -> None:
        delivery = current_delivery()
        assert delivery is not None
        roots.append((delivery.emission, delivery.root))

    emitted: list[Any] = []
    evt.connect(lambda sender: emitted.append(emit(inner)))
    outer = emit(evt)
    work(app).only(emitted[0])
    assert roots == [(emitted[0].id, outer.id)]


def test_next_task_has_no_cause_left_over(evt: Event, inner: Event, app: Celery, work: Work) -> None:
    """A task that runs later on the same thread has no cause."""
    on(evt, offload=True, name="shop.outer")(lambda sender: None)
    inner_emissions: list[Any] = []

    @app.task(name="shop.plain", shared=False)
    def plain() -> None:
        inner_emissions.append(emit(inner))
        inner_emissions.append(current_delivery())

    worker = work(app)
    worker.only(emit(evt))
    worker.of(plain.delay().id)
    assert (inner_emissions[0].parent, inner_emissions[1]) == (None, None)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_async_inline_handlers_of_a_worker_are_not_lost(
    evt: Event, inner: Event, app: Celery, work: Work, kind: str
) -> None:
    """Async inline handlers of an emit in a worker finish before the task does."""
    ran: list[str] = []

    @inner.connect
    async def inline(sender: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        ran.append("inline")

    def sync(sender: Any) -> None:
        emit(inner)

    async def on_loop(sender: Any) -> None:
        emit(inner)

    on(evt, offload=True, name="shop.outer")(sync if kind == "sync" else on_loop)
    work(app).only(emit(evt))
    assert ran == ["inline"]


def test_async_inline_handlers_of_their_own_emits_are_not_lost(
    evt: Event, inner: Event, app: Celery, work: Work
) -> None:
    """Async inline handlers that emit have their own async handlers finished before the task ends."""
    third = Namespace().event("third")
    ran: list[str] = []

    @inner.connect
    async def inline(sender: Any) -> None:
        emit(third)

    @third.connect
    async def nested(sender: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        ran.append("nested")

    on(evt, offload=True, name="shop.outer")(lambda sender: emit(inner) and None)
    work(app).only(emit(evt))
    assert ran == ["nested"]


def test_async_inline_handlers_of_an_async_handlers_emits_are_not_lost(
    evt: Event, inner: Event, app: Celery, work: Work
) -> None:
    """Nested async handlers finish before the task does, also when all run on the worker's loop."""
    third = Namespace().event("third")
    ran: list[str] = []

    @inner.connect
    async def inline(sender: Any) -> None:
        await asyncio.sleep(0)
        emit(third)

    @third.connect
    async def nested(sender: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        ran.append("nested")

    @on(evt, offload=True, name="shop.outer")
    async def outer(sender: Any) -> None:
        emit(inner)

    work(app).only(emit(evt))
    assert ran == ["nested"]


def test_async_inline_handlers_survive_a_failing_handler(evt: Event, inner: Event, app: Celery, work: Work) -> None:
    """Async inline handlers finish although the handler that emitted fails."""
    ran: list[str] = []

    @inner.connect
    async def inline(sender: Any) -> None:
        await asyncio.sleep(0)
        ran.append("inline")

    @on(evt, offload={"max_retries": 0}, name="shop.outer")
    async def outer(sender: Any) -> None:
        emit(inner)
        raise ValueError("no stock")

    assert work(app).state(emit(evt)) == "FAILURE"
    assert ran == ["inline"]


def test_concurrent_handlers_do_not_mix_up_their_causes(evt: Event, inner: Event, app: Celery, work: Work) -> None:
    """Handlers that run at once on one loop each have their own emission as the cause."""
    inner_emissions: dict[str, Any] = {}
    meet = threading.Barrier(2)

    @on(evt, offload={"max_retries": 0}, name="shop.outer")
    async def outer(sender: str) -> None:
        await asyncio.to_thread(meet.wait, 10)
        inner_emissions[sender] = emit(inner)

    emissions = {sender: emit(evt, sender) for sender in ("ada", "bob")}
    worker = work(app, pool="threads", concurrency=2)
    for emission in emissions.values():
        worker.only(emission)
    assert {sender: emission.parent for sender, emission in inner_emissions.items()} == {
        sender: emission.id for sender, emission in emissions.items()
    }


def test_delivery_names_its_parent(evt: Event, inner: Event, app: Celery, work: Work) -> None:
    """`Delivery.parent` is the emission whose handler emitted; the first of a chain has none."""
    deliveries: list[Any] = []
    inner_emissions: list[Any] = []

    def outer(sender: Any) -> None:
        deliveries.append(current_delivery())
        inner_emissions.append(emit(inner))

    on(evt, offload=True, name="shop.outer")(outer)
    on(inner, offload=True, name="shop.inner")(lambda sender: deliveries.append(current_delivery()))
    emission = emit(evt)
    worker = work(app)
    worker.only(emission)
    worker.only(inner_emissions[0])
    assert [delivery.parent for delivery in deliveries] == [None, emission.id]
