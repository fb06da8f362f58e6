"""Many threads emit one event while its handlers change: contract sections 3 and 4."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from nitro.infrastructure.events import Emission, Event, Namespace, drain, emit, on
from support.events import call_before_each_plan

THREADS, EMITS = 16, 60


@pytest.fixture(autouse=True)
def hectic() -> Iterator[None]:
    """Makes threads switch far more often than usual, so that races show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def together(*functions: Callable[[], Any]) -> None:
    """Runs each function in its own thread at once, and raises the first error."""
    start, errors = threading.Barrier(len(functions)), []

    def run(function: Callable[[], Any]) -> None:
        start.wait(10)
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


def recorder(name: str, priority: int) -> Callable[..., None]:
    """Returns a handler that records its run in the sender's list."""

    def handler(seen: list[Any]) -> None:
        seen.append((priority, name))

    return handler


def check(seen: list[tuple[int, str]]) -> None:
    """Asserts that each handler ran once, in the order of priority, and that the permanent ones ran."""
    names = [name for _, name in seen]
    assert len(set(names)) == len(names)
    assert [priority for priority, _ in seen] == sorted((priority for priority, _ in seen), reverse=True)
    assert {"top", "middle", "bottom"} <= set(names)


def change(target: Event, label: str, stop: threading.Event) -> None:
    """Connects and disconnects ten handlers until `stop` is set."""
    temporary = [(recorder(f"{label}{n}", n - 5), n - 5) for n in range(10)]
    while not stop.is_set():
        for handler, priority in temporary:
            on(target, priority=priority)(handler)
        for handler, _ in temporary:
            target.disconnect(handler)


def handlers_of_emit(evt: Event) -> list[Any]:
    """Emits once and returns the handlers that ran."""
    seen: list[Any] = []
    emit(evt, seen)
    return seen


@pytest.mark.parametrize("changing", ["event", "glob"])
def test_every_emission_sees_a_consistent_plan(changing: str) -> None:
    """16 threads emit with consistent plans while two threads change handlers of the event or of its glob."""
    namespace, stop, emissions = Namespace(), threading.Event(), []
    evt = namespace.event("order.placed")
    target = evt if changing == "event" else namespace.event("order.*")
    for name, priority in (("top", 9), ("middle", 0), ("bottom", -9)):
        on(evt, priority=priority)(recorder(name, priority))

    def emitters() -> None:
        try:
            together(*[lambda: emissions.extend(handlers_of_emit(evt) for _ in range(EMITS))] * THREADS)
        finally:
            stop.set()

    together(emitters, lambda: change(target, "a", stop), lambda: change(target, "b", stop))
    assert len(emissions) == THREADS * EMITS
    for seen in emissions:
        check(seen)
    assert [name for _, name in handlers_of_emit(evt)] == ["top", "middle", "bottom"]


def test_own_connect_is_seen_by_the_own_next_emit() -> None:
    """A thread's emit runs the handler that the thread has connected, and not after it has disconnected it."""
    evt = Namespace().event("order.placed")

    def work() -> None:
        for _ in range(EMITS):
            handler = evt.connect(lambda seen: seen.append("own"))
            seen = handlers_of_emit(evt)
            evt.disconnect(handler)
            assert "own" in seen
            assert handler not in evt.receivers.values()

    together(*[work] * THREADS)
    assert not evt.receivers


def test_own_senders_are_kept_apart() -> None:
    """16 threads with their own senders hear only their own emits."""
    evt = Namespace().event("order.placed")

    def work(number: int) -> None:
        sender, seen = f"sender {number}", []
        on(evt, sender=sender)(seen.append)
        for _ in range(EMITS):
            emit(evt, sender)
        assert seen == [sender] * EMITS

    together(*[lambda number=number: work(number) for number in range(THREADS)])


def test_a_handler_is_redefined_while_others_connect() -> None:
    """A module is run again and again while other threads connect handlers to new events."""
    namespace, shop, connecting = Namespace(), Event("shop.opened"), threading.Semaphore(0)
    source = compile("def greet(sender): pass", "greetings.py", "exec")

    def connect_to_new_events(number: int) -> None:
        for turn in range(EMITS):
            on(namespace.event(f"order {number} {turn}"), name=f"shop.{number}.{turn}")(lambda sender: None)
        connecting.release()

    def redefine() -> None:
        finished = 0
        while finished < THREADS:
            module = {"__name__": "greetings"}
            exec(source, module)
            on(shop)(module["greet"])
            finished += connecting.acquire(blocking=False)
        assert len(shop.handlers) == 1

    together(redefine, *[partial(connect_to_new_events, number) for number in range(THREADS)])


def test_event_of_one_name_is_one_object_for_all_threads() -> None:
    """Threads that create an event of the same name at the same moment get the same event."""
    namespace, events_of_threads = Namespace(), []
    names = [f"event.{number}" for number in range(EMITS)]
    together(*[lambda: events_of_threads.append([namespace.event(name) for name in names])] * THREADS)
    assert all(events == events_of_threads[0] for events in events_of_threads)


def test_causes_of_threads_are_kept_apart() -> None:
    """Each thread's inner emission is the child of its own outer one."""
    namespace = Namespace()
    outer, inner = namespace.event("outer"), namespace.event("inner")
    outer.connect(lambda sender: sender.append(emit(inner, sender)))
    inner.connect(lambda sender: None)

    def work() -> None:
        for _ in range(EMITS):
            children: list[Emission] = []
            emission = emit(outer, children)
            assert children[0].parent == emission.id

    together(*[work] * THREADS)


def test_async_handlers_of_all_threads_run_once() -> None:
    """Each async handler of each thread runs once on the background loop."""
    evt, ran = Namespace().event("order.placed"), []

    @on(evt)
    async def handler(sender: object) -> None:
        await asyncio.sleep(0)
        ran.append(sender)

    def work(number: int) -> None:
        for count in range(EMITS):
            emit(evt, (number, count))

    together(*[lambda number=number: work(number) for number in range(THREADS)])
    assert drain(30)
    assert sorted(ran) == [(number, count) for number in range(THREADS) for count in range(EMITS)]


@pytest.mark.parametrize("muting", ["event", "glob"])
def test_mute_is_not_undone_by_a_plan_in_the_making(monkeypatch: pytest.MonkeyPatch, muting: str) -> None:
    """A plan that is built while another thread mutes the event is not used afterwards."""
    namespace = Namespace()
    evt, glob = namespace.event("order.placed"), namespace.event("order.*")
    on(glob)(lambda sender: "heard")
    (evt if muting == "event" else glob).connect(lambda sender: "heard too")
    planning, may_plan = threading.Event(), threading.Event()

    def wait() -> None:
        if threading.current_thread() is planner:
            planning.set()
            may_plan.wait(10)

    call_before_each_plan(monkeypatch, wait)
    planner = threading.Thread(target=emit, args=(evt,))
    planner.start()
    planning.wait(10)
    target = evt if muting == "event" else glob
    muter = threading.Thread(target=lambda: setattr(target, "is_muted", True))
    muter.start()
    muter.join(0.2)
    may_plan.set()
    planner.join(10)
    muter.join(10)
    assert emit(evt) == []


def test_handler_may_change_the_handlers() -> None:
    """A handler that connects another one during an emission does not deadlock with other threads."""
    evt = Namespace().event("order.placed")

    @on(evt)
    def changing(sender: Event) -> None:
        sender.disconnect(sender.connect(lambda sender: None))

    together(*[lambda: [emit(evt, evt) for _ in range(EMITS)]] * 4)
    assert list(evt.receivers_for(evt)) == [changing]
