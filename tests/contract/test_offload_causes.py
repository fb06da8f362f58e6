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
    """What a handler emits."""
    return Namespace().event("order.billed")


@pytest.mark.parametrize("kind", ["sync", "async", "async with emit_async", "generator"])
def test_emit_in_a_worker_knows_its_parent(evt: Event, inner: Event, app: Celery, work: Work, kind: str) -> None:
    """Root and parent travel with the message to the handler's thread or loop."""
    found: list[Any] = []

    def sync(sender: Any) -> None:
        found.append(emit(inner))

    async def on_loop(sender: Any) -> None:
        found.append(emit(inner))

    async def awaited(sender: Any) -> None:
        found.append(await emit_async(inner))

    def generator(sender: Any) -> Any:
        yield found.append(emit(inner))

    kinds = {"sync": sync, "async": on_loop, "async with emit_async": awaited, "generator": generator}
    on(evt, offload=True, name="shop.outer")(kinds[kind])
    outer = emit(evt)
    work(app).only(outer)
    assert [(emission.parent, emission.root) for emission in found] == [(outer.id, outer.id)]


def test_root_is_the_first_of_a_chain_over_workers(evt: Event, inner: Event, app: Celery, work: Work) -> None:
    """A handler that is queued by a handler finds the beginning of it all."""
    third = Namespace().event("third")
    found: list[Any] = []
    on(evt, offload=True, name="shop.first")(lambda sender: found.append(emit(inner)))
    on(inner, offload=True, name="shop.second")(lambda sender: found.append(emit(third)))
    outer = emit(evt)
    worker = work(app)
    worker.only(outer)
    worker.only(found[0])
    assert [(emission.parent, emission.root) for emission in found] == [(outer.id, outer.id), (found[0].id, outer.id)]


def test_offload_by_an_inline_handler_knows_its_parent(evt: Event, inner: Event, app: Celery, work: Work) -> None:
    """An emission that was nested in the emitter keeps its root in the worker."""
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
    """Tasks of the app that run on the same thread afterwards are nobody's children."""
    on(evt, offload=True, name="shop.outer")(lambda sender: None)
    found: list[Any] = []

    @app.task(name="shop.plain", shared=False)
    def plain() -> None:
        found.append(emit(inner))
        found.append(current_delivery())

    worker = work(app)
    worker.only(emit(evt))
    worker.of(plain.delay().id)
    assert (found[0].parent, found[1]) == (None, None)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_async_inline_handlers_of_a_worker_are_not_lost(
    evt: Event, inner: Event, app: Celery, work: Work, kind: str
) -> None:
    """What an emit in a worker starts has finished when the task has."""
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
    """It holds for those that they start in turn."""
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
    """Also where all of them run on the worker's loop."""
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
    """They were started before it failed, and take no part in its failure."""
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
    """Handlers that are inside at once on one loop each have their own emission as the cause."""
    found: dict[str, Any] = {}
    meet = threading.Barrier(2)

    @on(evt, offload={"max_retries": 0}, name="shop.outer")
    async def outer(sender: str) -> None:
        await asyncio.to_thread(meet.wait, 10)
        found[sender] = emit(inner)

    emissions = {sender: emit(evt, sender) for sender in ("ada", "bob")}
    worker = work(app, pool="threads", concurrency=2)
    for emission in emissions.values():
        worker.only(emission)
    assert {sender: emission.parent for sender, emission in found.items()} == {
        sender: emission.id for sender, emission in emissions.items()
    }


def test_delivery_names_its_parent(evt: Event, inner: Event, app: Celery, work: Work) -> None:
    """`Delivery.parent` is the emission whose handler emitted; the first of a chain has none."""
    deliveries: list[Any] = []
    found: list[Any] = []

    def outer(sender: Any) -> None:
        deliveries.append(current_delivery())
        found.append(emit(inner))

    on(evt, offload=True, name="shop.outer")(outer)
    on(inner, offload=True, name="shop.inner")(lambda sender: deliveries.append(current_delivery()))
    emission = emit(evt)
    worker = work(app)
    worker.only(emission)
    worker.only(found[0])
    assert [delivery.parent for delivery in deliveries] == [None, emission.id]
