"""`root` and `parent`: an emit inside a handler records its cause: contract sections 4 and 5."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from nitro.infrastructure.events import Emission, Namespace, drain, drain_async, emit, emit_async, on
from support.app import current_cause, running_task_of

Chain = dict[str, Emission]


@pytest.fixture
def chain() -> Chain:
    """Emissions of handlers by the name of their event."""
    return {}


def connect(namespace: Namespace, chain: Chain, name: str, caused_name: str, *, kind: str = "sync") -> None:
    """Connects a handler of the given kind to `name` that emits `caused_name` and keeps the emission in `chain`."""
    caused = namespace.event(caused_name)

    def sync(sender: object) -> None:
        chain[caused_name] = emit(caused)

    async def coroutine(sender: object) -> None:
        await asyncio.sleep(0)
        chain[caused_name] = emit(caused)
        await asyncio.sleep(0)

    async def awaiting(sender: object) -> None:
        await asyncio.sleep(0)
        chain[caused_name] = await emit_async(caused)

    def generator(sender: object) -> Any:
        yield 1
        chain[caused_name] = emit(caused)
        yield 2

    async def async_generator(sender: object) -> Any:
        yield 1
        chain[caused_name] = emit(caused)
        yield 2

    async def threaded(sender: object) -> None:
        chain[caused_name] = await asyncio.to_thread(emit, caused)

    kinds = (sync, coroutine, awaiting, generator, async_generator, threaded)
    on(namespace.event(name))({function.__name__: function for function in kinds}[kind])


KINDS = ("sync", "coroutine", "awaiting", "generator", "async_generator", "threaded")


def check(chain: Chain, first: Emission) -> None:
    assert (first.parent, first.root) == (None, None)
    assert (chain["second"].parent, chain["second"].root) == (first.id, first.id)
    assert (chain["third"].parent, chain["third"].root) == (chain["second"].id, first.id)


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", KINDS)
def test_emit_in_a_handler_knows_parent_and_root(chain: Chain, outer: str, inner: str) -> None:
    """Parent and root are recorded for each kind of handler, under `emit` without a loop."""
    events = Namespace()
    connect(events, chain, "first", "second", kind=outer)
    connect(events, chain, "second", "third", kind=inner)
    first = emit(events.event("first"))
    assert drain(10)
    check(chain, first)


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", KINDS)
def test_emit_async_in_a_handler_knows_parent_and_root(chain: Chain, outer: str, inner: str) -> None:
    """Parent and root are recorded under `emit_async`, where handlers run on the emitter's loop."""
    events = Namespace()
    connect(events, chain, "first", "second", kind=outer)
    connect(events, chain, "second", "third", kind=inner)

    async def main() -> Emission:
        first = await emit_async(events.event("first"))
        await asyncio.wait_for(drain_async(), 10)
        return first

    check(chain, asyncio.run(main()))


@pytest.mark.parametrize("failing", [True, False])
def test_cause_ends_with_the_handler(failing: bool) -> None:
    """An emission after another one has no parent, also when the first one failed."""
    events = Namespace()

    @on(events.event("first"))
    def handler(sender: object) -> None:
        if failing:
            raise ValueError("broken")

    if failing:
        with pytest.raises(ValueError, match="broken"):
            emit(events.event("first"))
    else:
        emit(events.event("first"))
    assert emit(events.event("second")).parent is None
    assert current_cause() is None


def test_async_siblings_do_not_mix_up_their_causes() -> None:
    """Handlers of two emissions that take turns on one loop each have their own cause."""
    events, seen = Namespace(), {}

    @on(events.event("first"))
    async def handler(sender: str) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            seen.setdefault(sender, []).append(emit(events.event("second")).parent)

    async def main() -> list[Emission]:
        return list(await asyncio.gather(*(emit_async(events.event("first"), name) for name in "ab")))

    first = dict(zip("ab", asyncio.run(main()), strict=True))
    assert seen == {name: [first[name].id] * 3 for name in "ab"}


def test_thread_that_a_handler_leaves_running_has_no_cause() -> None:
    """An emission on a thread that a sync handler starts has no parent."""
    events, emitted = Namespace(), []

    @on(events.event("first"))
    def handler(sender: object) -> None:
        thread = threading.Thread(target=lambda: emitted.append(emit(events.event("second"))))
        thread.start()
        thread.join()

    emit(events.event("first"))
    assert [emission.parent for emission in emitted] == [None]


def test_task_that_a_sync_handler_leaves_running_has_no_cause() -> None:
    """An emission in a task that a sync handler creates has no parent."""
    events, emitted, tasks = Namespace(), [], []

    async def later() -> None:
        emitted.append(emit(events.event("second")))

    @on(events.event("first"))
    def handler(sender: object) -> None:
        tasks.append(asyncio.get_running_loop().create_task(later()))

    async def main() -> None:
        emit(events.event("first"))
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert [emission.parent for emission in emitted] == [None]


def test_task_that_an_async_handler_starts_has_its_cause() -> None:
    """A task that an async handler creates has the handler's cause, because it inherits the context."""
    events, emitted = Namespace(), []

    async def later() -> None:
        emitted.append(emit(events.event("second")))

    @on(events.event("first"))
    async def handler(sender: object) -> None:
        await asyncio.create_task(later())

    first = asyncio.run(emit_async(events.event("first")))
    assert [emission.parent for emission in emitted] == [first.id]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_eager_tasks_keep_their_causes(chain: Chain) -> None:
    """Causes are the same on a loop with `asyncio.eager_task_factory`."""
    events = Namespace()
    connect(events, chain, "first", "second", kind="coroutine")
    connect(events, chain, "second", "third")

    async def main() -> Emission:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        first = emit(events.event("first"))
        await asyncio.wait_for(drain_async(), 10)
        return first

    check(chain, asyncio.run(main()))


def test_loop_inside_a_sync_handler_keeps_its_cause(chain: Chain) -> None:
    """`asyncio.run` in a sync handler keeps the cause of that handler."""
    events = Namespace()
    connect(events, chain, "second", "third", kind="coroutine")

    @on(events.event("first"))
    def handler(sender: object) -> None:
        chain["second"] = asyncio.run(emit_async(events.event("second")))

    check(chain, emit(events.event("first")))


def test_emit_in_a_condition_knows_its_cause() -> None:
    """An emission in a condition has the emission of the condition as its parent."""
    events, emitted = Namespace(), []

    def condition(sender: object) -> bool:
        emitted.append(emit(events.event("second")))
        return True

    on(events.event("first"), condition=condition)(lambda sender: None)
    first = emit(events.event("first"))
    assert [emission.parent for emission in emitted] == [first.id]


def test_delivery_in_a_worker_is_a_cause(chain: Chain) -> None:
    """The running emission of a worker is the parent of the emissions of its handler."""
    events = Namespace()
    delivered = Emission.of("first")
    connect(events, chain, "second", "third")
    with running_task_of(delivered):
        chain["second"] = emit(events.event("second"))
    check(chain, delivered)
    assert emit(events.event("second")).parent is None
