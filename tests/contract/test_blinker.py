"""An Event keeps blinker's promises of a signal: contract section 3."""

from __future__ import annotations

import asyncio
from typing import Any

import blinker
import pytest

from nitro.infrastructure.events import ANY, Event, Namespace, drain, emit, event, on


class Account:
    """A sender with an identity, as an entity has it."""

    @property
    def __nitro_identity__(self) -> tuple[type, str]:
        return type(self), "1"


def test_event_and_namespace_are_blinkers(evt: Event) -> None:
    """Events and namespaces are instances of blinker's classes."""
    assert isinstance(evt, blinker.NamedSignal)
    assert isinstance(Namespace(), blinker.Namespace)


def test_namespace_signal_is_event() -> None:
    """`Namespace.signal` and `Namespace.event` return the same objects."""
    namespace = Namespace()
    assert namespace.signal("order-placed") is namespace.event("order-placed")


def test_muted_silences_for_a_while(evt: Event) -> None:
    """`muted()` ends with its block, also by an exception."""
    evt.connect(lambda sender: "heard")
    with pytest.raises(KeyError), evt.muted():
        assert evt.is_muted
        assert (evt.send(), emit(evt), asyncio.run(evt.emit_async())) == ([], [], [])
        raise KeyError
    assert emit(evt) == ["heard"]


def test_connected_to_connects_for_a_while(evt: Event) -> None:
    """`connected_to()` connects in its block only, and only for its sender."""
    seen: list[object] = []

    def handler(sender: object) -> None:
        seen.append(sender)

    with evt.connected_to(handler, sender="ada"):
        emit(evt, "ada")
        emit(evt, "bob")
    emit(evt, "ada")
    assert seen == ["ada"]


def test_connect_via_decorates(evt: Event) -> None:
    """`connect_via(sender)` connects the decorated function for that sender."""

    @evt.connect_via("ada")
    def handler(sender: object) -> str:
        return "heard"

    assert [emit(evt, sender) for sender in ("ada", "bob")] == [["heard"], []]


def test_receivers_for_sees_globs_and_senders_in_order(default: Namespace) -> None:
    """`receivers_for` gives the functions that an emit would call or queue, each once."""
    functions = [lambda sender, number=number: number for number in range(4)]
    on("user.*")(functions[0])
    on("user.created", priority=5)(functions[1])
    on("user.created", sender=Account())(functions[2])
    on("user.created", sender="somebody else")(functions[3])
    on("user.created")(functions[0])
    created = event("user.created")
    assert list(created.receivers_for(Account())) == [functions[1], functions[0], functions[2]]
    assert list(created.receivers_for(ANY)) == [functions[1], functions[0]]


def test_receivers_for_lists_offloaded_functions(evt: Event, queue: Any) -> None:
    """`receivers_for` lists offloaded functions too."""

    @on(evt, offload=True)
    def mail(sender: object) -> None: ...

    assert list(evt.receivers_for("ada")) == [mail]


def test_has_receivers_for_sees_globs_and_senders(default: Namespace) -> None:
    """`has_receivers_for` answers for its sender, and counts globs."""
    created = event("user.created")
    assert not created.has_receivers_for(ANY)
    on("user.created", sender=Account)(lambda sender: None)
    assert created.has_receivers_for(Account())
    assert not created.has_receivers_for("ada")
    on("user.*")(lambda sender: None)
    assert created.has_receivers_for("ada")


def test_receivers_is_true_when_somebody_hears(default: Namespace) -> None:
    """The truth value of `receivers` says whether a handler is connected, also through a glob."""
    created = event("user.created")
    assert not created.receivers
    handler = on("user.*")(lambda sender: None)
    assert created.receivers
    event("user.*").disconnect(handler)
    assert not created.receivers


def test_send_gives_functions_with_results(evt: Event, queue: Any) -> None:
    """`send` returns the awaited inline functions with their results, in order, None included."""

    @on(evt)
    def nothing(sender: object, **kwargs: Any) -> None: ...

    @on(evt, priority=1)
    def something(sender: object, **kwargs: Any) -> Any:
        return sender, kwargs

    @on(evt)
    async def later(sender: object, **kwargs: Any) -> str:
        return "not waited for"

    on(evt, condition=lambda sender, **kwargs: False)(lambda sender, **kwargs: "skipped")
    on(evt, offload=True, name="mail")(lambda sender, **kwargs: "in the worker")
    assert evt.send("ada", reason="new") == [(something, ("ada", {"reason": "new"})), (nothing, None)]
    assert queue.queued == ["mail"]
    assert drain(10)


def test_send_gives_the_false_that_stopped_it(evt: Event) -> None:
    """The False of a cancellation is the last result of `send`."""
    gate = evt.connect(lambda sender: False)
    evt.connect(lambda sender: "not reached")
    assert evt.send() == [(gate, False)]


def test_send_without_a_sender_sends_none(evt: Event) -> None:
    """Without a sender `send` passes None, as blinker does, and not `ANY`."""
    evt.connect(lambda sender: sender is None)
    assert [result for _, result in evt.send()] == [True]


def test_send_async_awaits(evt: Event) -> None:
    """`send_async` returns async functions with their results too."""

    @on(evt)
    async def later(sender: object) -> str:
        return "awaited"

    plain = evt.connect(lambda sender: None)
    assert asyncio.run(evt.send_async("ada")) == [(later, "awaited"), (plain, None)]


def test_receiver_connected_tells_of_handlers(evt: Event) -> None:
    """`receiver_connected` and `receiver_disconnected` are sent with blinker's arguments."""
    reports: list[Any] = []
    evt.receiver_connected.connect(lambda signal, **facts: reports.append((signal, facts)), weak=False)
    evt.receiver_disconnected.connect(lambda signal, **facts: reports.append((signal, facts)), weak=False)
    handler = on(evt, sender="ada")(lambda sender: None)
    evt.disconnect(handler, "ada")
    connected = {"receiver": handler, "sender": "ada", "weak": False}
    assert reports == [(evt, connected), (evt, {"receiver": handler, "sender": "ada"})]


def test_wrappers_of_blinker_are_no_arguments(evt: Event) -> None:
    """`_async_wrapper` and `_sync_wrapper` are accepted, ignored and not passed to handlers."""
    handler = on(evt)(lambda sender, **kwargs: kwargs)
    sent = evt.send("ada", _async_wrapper=lambda function: function, total=3)
    sent += asyncio.run(evt.send_async("ada", _sync_wrapper=lambda function: function, total=3))
    assert sent == [(handler, {"total": 3})] * 2
