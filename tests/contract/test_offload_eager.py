"""`task_always_eager`: offloaded handlers run in the emitter, as Celery's tests want it."""

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
    """A bound app that runs tasks at once, with a broker that cannot be reached."""
    return bind(make_app(task_always_eager=True, broker_url="redis://127.0.0.1:1/0"))


def test_handler_runs_at_once(evt: Event, eager: Celery) -> None:
    """A handler runs in the emit, without a broker."""
    ran: list[Any] = []
    on(evt, offload=True, name="shop.handler")(lambda sender, **kwargs: ran.append((sender, kwargs)))
    emit(evt, "ada", tags={1, 2})
    assert ran == [("ada", {"tags": {1, 2}})]


def test_handler_gets_what_a_worker_would_give_it(evt: Event, eager: Celery) -> None:
    """Arguments go through the codec: a handler gets a copy, and an unsupported value raises."""
    ran: list[Any] = []
    on(evt, offload=True, name="shop.handler")(lambda sender, **kwargs: ran.append(kwargs["items"]))
    items = [1]
    emit(evt, "ada", items=items)
    assert ran == [items]
    assert ran[0] is not items
    with pytest.raises(PayloadError):
        emit(evt, object(), items=items)


def test_task_id_is_the_promised_one(evt: Event, eager: Celery) -> None:
    """`Emission.offloaded` has the ids of the tasks that ran."""
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
    """An async handler runs although the emitter's thread has a running loop."""
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
    """A failing handler does not reach the emitter, as in a worker, and the others run."""
    ran: list[Any] = []

    @on(evt, offload={"max_retries": 0}, name="shop.failing")
    def failing(sender: Any) -> None:
        raise ValueError("no stock")

    on(evt, offload=True, name="shop.fine")(lambda sender: ran.append(sender))
    emit(evt, "ada")
    assert ran == ["ada"]


@pytest.mark.parametrize("error", [ValueError, ConnectionError])
def test_eager_propagation_raises_the_handlers_own_error(evt: Event, eager: Celery, error: type[Exception]) -> None:
    """With `task_eager_propagates` an emit raises the handler's exception, also one of a broker's class."""
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
    """The emission of a handler has the handler's own emission as its parent."""
    inner = Event("inner")
    inner_emissions = []
    on(evt, offload=True, name="shop.handler")(lambda sender: inner_emissions.append(emit(inner)))
    outer = emit(evt)
    assert [(emission.parent, emission.root) for emission in inner_emissions] == [(outer.id, outer.id)]
    assert emit(inner).parent is None


NESTED = """
import asyncio
from celery import Celery

app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.task_always_eager = True
from nitro.infrastructure.events import emit, on

@on("order.billed", offload=True, name="shop.inner")
async def inner(sender):
    await asyncio.sleep(0)
    print("inner", sender)

"""


@pytest.mark.parametrize(
    "reaching",
    ["emit('order.billed', sender)", "inner.task(sender)", "inner.task.apply((sender,))"],
    ids=["emit", "call", "apply"],
)
def test_async_handler_reaches_another_one(fresh_process: Callable[..., Any], reaching: str) -> None:
    """An async handler can run another one, because the inner one does not wait for the outer one's loop."""
    outer = f"@on('order.placed', offload=True, name='shop.outer')\nasync def outer(sender):\n    {reaching}\n"
    process = fresh_process(NESTED + outer + "emit('order.placed', 'ada')\n")
    assert (process.returncode, process.stdout, process.stderr) == (0, "inner ada\n", "")


def test_handler_on_a_running_loop_starts_an_async_one(fresh_process: Callable[..., Any]) -> None:
    """A sync handler on a loop's thread starts an async inline one on that loop, and returns."""
    source = """
@on("order.placed", offload=True, name="shop.outer")
def outer(sender):
    emit("order.paid", sender)

@on("order.paid")
async def paid(sender):
    print("paid", sender)

async def main():
    emit("order.placed", "ada")
    print("emitted")

asyncio.run(main())
"""
    process = fresh_process(NESTED + source)
    assert (process.returncode, process.stdout, process.stderr) == (0, "emitted\npaid ada\n", "")


def test_generator_shows_no_progress(evt: Event, eager: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """An eager generator stores no progress in the result backend and sends no event, as in Celery."""
    ran: list[Any] = []
    shown: list[Any] = []
    monkeypatch.setattr(eager.backend, "store_result", lambda *facts, **_options: shown.append(facts))
    monkeypatch.setattr(eager.events, "default_dispatcher", lambda **_options: shown.append("event"))

    @on(evt, offload={"send_events": True}, name="shop.packing")
    def packing(sender: Any) -> Any:
        yield ran.append(sender)

    emit(evt, "ada")
    assert (ran, shown) == (["ada"], [])
