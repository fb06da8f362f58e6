"""Globs, and handlers that hear only some senders: contract section 3."""

from __future__ import annotations

import functools
import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest

from nitro.errors import EmitError
from nitro.infrastructure.events import ANY, Event, Namespace, emit, emit_async, event, filter_signals, on


class Account:
    """A sender with an identity of class and id, as an entity has it."""

    def __init__(self, key: str) -> None:
        self.key = key

    @property
    def __nitro_identity__(self) -> tuple[type, str]:
        return type(self), self.key


class Invoice(Account): ...


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("glob", "heard"),
    [
        ("user.*", ["user.created", "user.deleted"]),
        ("*.created", ["user.created", "order.created"]),
        ("*", ["user.created", "user.deleted", "order.created"]),
        ("user.?eleted", ["user.deleted"]),
        ("[ou]*.created", ["user.created", "order.created"]),
        ("USER.*", []),
    ],
)
def test_glob_hears_the_events_that_match(default: Namespace, glob: str, heard: list[str]) -> None:
    """Globs match as file names do, and case matters."""
    seen: list[object] = []
    on(glob)(seen.append)
    for name in ("user.created", "user.deleted", "order.created"):
        emit(name, name)
    assert seen == heard


def test_glob_hears_events_created_earlier_and_later(default: Namespace) -> None:
    """A glob hears events that were created or emitted before it, and later ones."""
    emit("user.created")
    seen: list[object] = []
    on("user.*")(seen.append)
    emit("user.created", "earlier")
    emit(event("user.deleted"), "later")
    assert seen == ["earlier", "later"]


def test_glob_handlers_are_ordered_with_all_others(default: Namespace) -> None:
    """Priority and registration order count over globs and events together."""
    order: list[str] = []
    for name, evt, priority in (("a", "*", 0), ("b", "user.created", 0), ("c", "user.*", 0), ("d", "*.created", 1)):
        on(evt, priority=priority)(lambda sender, name=name: order.append(name))
    emit("user.created")
    assert order == ["d", "a", "b", "c"]


def test_function_heard_through_several_globs_runs_once(default: Namespace) -> None:
    """A function on several globs runs once, by its first registration, although a later one is higher."""
    order: list[str] = []

    def handler(sender: object) -> None:
        order.append("handler")

    on("user.*", priority=1)(handler)
    on("user.created", priority=9)(handler)
    on("*", priority=9)(handler)
    on("*", priority=5)(lambda sender: order.append("between"))
    emit("user.created")
    assert order == ["between", "handler"]


def test_glob_can_cancel_and_be_offloaded(default: Namespace, queue: Any) -> None:
    """Handlers of a glob can cancel, and can be offloaded."""
    on("user.*", offload=True, name="audit")(lambda sender: None)
    emit("user.created")
    assert queue.queued == ["audit"]
    on("*", priority=-1)(lambda sender: False)
    emit("user.created")
    assert queue.queued == ["audit"]


def test_glob_is_emitted_by_no_way(default: Namespace) -> None:
    """Every function that emits raises for a glob and names it."""
    on("user.*")(lambda sender: pytest.fail("ran"))
    for emitting in (emit, lambda glob: event(glob).emit(), lambda glob: event(glob).send()):
        with pytest.raises(EmitError, match=r"user\.\*"):
            emitting("user.*")
    with pytest.raises(EmitError, match="glob"):
        emit_async("user.*").send(None)


def test_glob_can_be_disconnected(default: Namespace) -> None:
    """A change on a glob takes effect at the next emit of every event it hears."""
    handler = on("user.*")(lambda sender: "heard")
    assert emit("user.created") == ["heard"]
    event("user.*").disconnect(handler)
    assert emit("user.created") == []


def test_disconnecting_from_an_event_leaves_the_glob(default: Namespace) -> None:
    """Each registration is removed where it was made."""
    handler = on("user.*")(lambda sender: "heard")
    event("user.created").disconnect(handler)
    assert emit("user.created") == ["heard"]


def test_glob_can_be_muted(default: Namespace) -> None:
    """Muting a glob silences its handlers and no others."""
    on("user.*")(lambda sender: "glob")
    on("user.created")(lambda sender: "event")
    with event("user.*").muted():
        assert emit("user.created") == ["event"]
    assert emit("user.created") == ["glob", "event"]


def test_weak_glob_handler_vanishes(default: Namespace) -> None:
    """A collected weak handler of a glob is gone from the plans of its events."""

    def handler(sender: object) -> str:
        return "heard"

    on("user.*", weak=True)(handler)
    assert emit("user.created") == ["heard"]
    del handler
    gc.collect()
    assert emit("user.created") == []
    assert not event("user.created").receivers


def test_globs_hear_only_their_namespace(default: Namespace) -> None:
    """A glob of the default namespace does not hear events of another namespace."""
    namespace = Namespace()
    on("*")(lambda sender: "default")
    on(namespace.event("*"))(lambda sender: "mine")
    assert emit(namespace.event("user.created")) == ["mine"]
    assert emit("user.created") == ["default"]


def test_globs_are_no_events_of_the_namespace(default: Namespace) -> None:
    """A namespace lists events that can be emitted, and no globs."""
    on("user.*")(lambda sender: None)
    created = event("user.created")
    assert list(default.values()) == [created]


def test_filter_signals_selects_by_glob(default: Namespace) -> None:
    """The events come in the order they were created; globs are not among them."""
    names = ("user.deleted", "order.created", "user.created", "user.*")
    deleted, _, created, _ = [event(name) for name in names]
    assert list(filter_signals("user.*").items()) == [("user.deleted", deleted), ("user.created", created)]
    assert filter_signals("nothing.*") == {}


def test_filter_signals_selects_in_a_namespace(default: Namespace) -> None:
    """`filter_signals` takes another namespace as well."""
    namespace = Namespace()
    created = namespace.event("user.created")
    event("user.deleted")
    assert filter_signals("user.*", namespace) == {"user.created": created}


def test_sender_hears_only_that_object(evt: Event) -> None:
    """A sender without an identity is matched by `is`, not by equality."""
    point, other = Point(1), Point(1)
    on(evt, sender=point)(lambda sender: "heard")
    assert [emit(evt, sender) for sender in (point, other, None, ANY)] == [["heard"], [], [], []]


@pytest.mark.parametrize("sender", ["ada", 7, 10**30, None, True, print, (1, 2)])
def test_sender_can_be_any_object(evt: Event, sender: object) -> None:
    """Any object can be a sender, not only an entity."""
    on(evt, sender=sender)(lambda heard: "heard")
    assert emit(evt, sender) == ["heard"]
    assert emit(evt, "somebody else") == []


def test_text_and_number_senders_are_known_by_value(evt: Event) -> None:
    """Texts and numbers match by type and value, as in blinker."""
    on(evt, sender="shop-1")(lambda sender: "text")
    on(evt, sender=1)(lambda sender: "number")
    assert emit(evt, f"shop-{len([None])}") == ["text"]
    assert [emit(evt, sender) for sender in (True, 1.0)] == [[], []]


def test_class_hears_its_instances(evt: Event) -> None:
    """Instances of a subclass are instances; the class itself may send too."""
    on(evt, sender=Account)(lambda sender: "heard")
    senders = (Account("1"), Invoice("1"), Account, Invoice, Point(1))
    assert [bool(emit(evt, sender)) for sender in senders] == [True, True, True, False, False]


def test_entity_is_known_by_class_and_id(evt: Event) -> None:
    """An entity matches any object of the same row, and not the same id of another class."""
    on(evt, sender=Account("1"))(lambda sender: "heard")
    senders = (Account("1"), Account("2"), Invoice("1"))
    assert [emit(evt, sender) for sender in senders] == [["heard"], [], []]


def test_entity_sender_need_not_stay_alive(evt: Event) -> None:
    """A registration for an entity stays when the entity object is collected."""
    on(evt, sender=Account("1"))(lambda sender: "heard")
    gc.collect()
    assert emit(evt, Account("1")) == ["heard"]


def test_plain_sender_is_not_kept_alive(evt: Event) -> None:
    """A registration for a plain object ends with the object, as in blinker."""
    sender = Point(1)
    reference = weakref.ref(sender)
    on(evt, sender=sender)(lambda heard: "heard")
    emit(evt, sender)
    del sender
    gc.collect()
    assert reference() is None
    assert not evt.receivers


def test_new_object_at_a_dead_senders_address_is_not_heard(evt: Event) -> None:
    """A new object at the address of a collected sender does not match."""
    for _ in range(200):
        on(evt, sender=Point(1))(lambda sender: pytest.fail("heard a stranger"))
        emit(evt, Point(1))


def test_one_function_can_hear_several_senders(evt: Event) -> None:
    """A function that is connected for two senders hears both, once each."""

    def handler(sender: object) -> object:
        return sender

    on(evt, sender="ada")(handler)
    on(evt, sender="bob")(handler)
    assert [emit(evt, sender) for sender in ("ada", "bob", "eve")] == [["ada"], ["bob"], []]


def test_disconnecting_from_one_sender_keeps_the_others(evt: Event) -> None:
    """`disconnect(function, sender)` removes one registration; without a sender it removes all."""

    def handler(sender: object) -> object:
        return sender

    on(evt, sender="ada")(handler)
    on(evt, sender="bob")(handler)
    evt.disconnect(handler, "ada")
    assert [emit(evt, sender) for sender in ("ada", "bob")] == [[], ["bob"]]
    evt.disconnect(handler)
    assert emit(evt, "bob") == []


def test_class_and_any_handlers_mix_in_order(evt: Event) -> None:
    """Registrations for classes, objects and `ANY` run in one common order."""
    account, order = Account("1"), []
    for name, sender in (("class", Account), ("any", ANY), ("object", account), ("other", Point)):
        on(evt, sender=sender)(lambda heard, name=name: order.append(name))
    emit(evt, account)
    assert order == ["class", "any", "object"]


def test_real_entity_is_known_by_class_and_id(evt: Event) -> None:
    """An `Entity` brings the identity that events ask for."""
    entities = pytest.importorskip("nitro.domain.entities.base_entity")

    class Ticket(entities.Entity):  # type: ignore[misc,name-defined]  # loaded only where it exists
        seat: str = ""

    on(evt, sender=Ticket(id="t1"))(lambda sender: "heard")
    assert emit(evt, Ticket(id="t1", seat="4A")) == ["heard"]
    assert emit(evt, Ticket(id="t2")) == []


def test_dead_weak_handlers_of_a_glob_are_forgotten(default: Namespace) -> None:
    """Objects of a collected weak handler are freed when one of its events is planned again."""
    condition = functools.partial(bool)
    reference = weakref.ref(condition)
    handler = on("user.*", weak=True, condition=condition)(lambda sender: None)
    emit("user.created")
    del handler, condition
    emit("user.created")
    gc.collect()
    assert reference() is None
