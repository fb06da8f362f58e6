"""Declaring events and handlers: contract section 3."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import blinker
import pytest
from celery import Celery

from nitro.errors import DeclarationError
from nitro.infrastructure.events import ANY, Event, Namespace, emit, event, on

Call = Callable[..., Any]


def test_event_gives_the_same_object_for_the_same_name(default: Namespace) -> None:
    """The name is the identity of an event."""
    assert event("order-placed") is event("order-placed")
    assert event("order-placed") is not event("order-paid")


def test_event_keeps_its_doc_and_name(default: Namespace) -> None:
    """The doc of a declaration can be read, and a later call without doc does not erase it."""
    declared = event("order-placed", doc="an order was placed")
    assert (event("order-placed").name, event("order-placed").__doc__) == ("order-placed", "an order was placed")
    assert isinstance(declared, blinker.NamedSignal)


def test_event_lives_in_the_default_namespace(default: Namespace) -> None:
    """`event` declares its event in the default namespace."""
    declared = event("order-placed")
    assert default == {"order-placed": declared}


@pytest.mark.parametrize("name", ["", None, 3, ["order"]])
def test_event_refuses_what_is_no_name(name: Any) -> None:
    """A name is a text that is not empty."""
    with pytest.raises(DeclarationError):
        event(name)


def test_namespace_is_a_dict_of_its_own_events(default: Namespace) -> None:
    """Two namespaces share no event."""
    namespace = Namespace()
    placed = namespace.event("order-placed")
    assert isinstance(namespace, dict)
    assert namespace == {"order-placed": placed}
    assert placed is not event("order-placed")


@pytest.mark.parametrize("options", [{}, {"offload": True}, {"weak": True}, {"priority": 3}])
def test_on_returns_the_very_same_function(evt: Event, queue: Any, options: dict[str, Any]) -> None:
    """`on` returns the function itself."""

    def handler(sender: object) -> None: ...

    assert on(evt, **options)(handler) is handler


def test_connect_returns_the_very_same_function(evt: Event) -> None:
    """`Event.connect` is `on` as a method."""

    def handler(sender: object) -> None: ...

    assert evt.connect(handler) is handler


def test_on_accepts_the_name_of_an_event(default: Namespace) -> None:
    """A name stands for the event of that name in the default namespace."""
    seen: list[object] = []
    on("order-placed")(seen.append)
    emit(event("order-placed"), "ada")
    emit("order-placed", "bob")
    assert seen == ["ada", "bob"]


@pytest.mark.parametrize("evt", [3, None, print])
def test_on_refuses_what_is_neither_event_nor_name(evt: Any) -> None:
    """The error of `@on` without parentheses says that they are missing."""
    with pytest.raises(DeclarationError, match="parentheses"):
        on(evt)


def test_on_takes_options_by_keyword_only(evt: Event) -> None:
    """A forgotten keyword is an error at import."""
    with pytest.raises(TypeError):
        on(evt, object())  # type: ignore[call-overload]  # the misuse under test


def test_handler_is_strong_by_default(evt: Event) -> None:
    """A handler without another reference stays connected."""
    evt.connect(lambda sender: "kept")
    gc.collect()
    assert evt.emit() == ["kept"]


def test_bound_method_keeps_its_object_alive(evt: Event) -> None:
    """The registration of a bound method keeps its object in memory."""

    class Service:
        def handle(self, sender: object) -> str:
            return "kept"

    evt.connect(Service().handle)
    gc.collect()
    assert evt.emit() == ["kept"]


def test_weak_handler_vanishes_with_its_function(evt: Event) -> None:
    """With `weak=True` a handler is gone with its function, as in blinker."""

    def handler(sender: object) -> str:
        return "there"

    evt.connect(handler, weak=True)
    assert evt.emit() == ["there"]
    del handler
    gc.collect()
    assert evt.emit() == []
    assert not evt.receivers


def test_weak_bound_method_vanishes_with_its_object(evt: Event) -> None:
    """A weak bound method stays connected while its object exists, and not only while the method does."""

    class Service:
        def handle(self, sender: object) -> str:
            return "there"

    service = Service()
    on(evt, weak=True)(service.handle)
    gc.collect()
    assert evt.emit() == ["there"]
    del service
    gc.collect()
    assert evt.emit() == []


async def async_condition(sender: object) -> bool:
    return True


class AsyncCondition:
    async def __call__(self, sender: object) -> bool:
        return True


def generator_condition(sender: object) -> Any:
    yield True


@pytest.mark.parametrize(
    "condition",
    [
        async_condition,
        functools.partial(async_condition),
        AsyncCondition(),
        AsyncCondition().__call__,
        generator_condition,
    ],
)
def test_condition_must_be_a_plain_function(evt: Event, condition: Call) -> None:
    """An async or generator function as a condition is an error at import."""
    with pytest.raises(DeclarationError, match="condition"):
        on(evt, condition=condition)(lambda sender: None)
    assert not evt.receivers


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"priority": "high"}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"on_error": "ignore"}, "on_error"),
        ({"condition": "total > 100"}, "condition"),
        ({"name": 3}, "name"),
    ],
)
def test_wrong_option_is_an_error_at_import(evt: Event, options: dict[str, Any], option: str) -> None:
    """The error of a wrong option is raised at the declaration and names the option."""
    with pytest.raises(DeclarationError, match=option):
        on(evt, **options)(lambda sender: None)
    assert not evt.receivers


def test_handler_must_be_callable(evt: Event) -> None:
    """An object that cannot be called is no handler."""
    with pytest.raises(DeclarationError, match="not callable"):
        evt.connect("handler")  # type: ignore[type-var]  # the misuse under test


def test_function_connected_twice_runs_once_by_its_first_registration(evt: Event) -> None:
    """The first registration gives the priority; later ones change nothing."""
    order: list[str] = []

    def twice(sender: object) -> None:
        order.append("twice")

    on(evt, priority=1)(twice)
    evt.connect(lambda sender: order.append("between"), priority=5)
    on(evt, priority=9)(twice)
    evt.emit()
    assert order == ["between", "twice"]


def test_first_registration_that_matches_the_sender_counts(evt: Event) -> None:
    """A registration for another sender is no match, so the next one decides."""
    order: list[str] = []

    def handler(sender: object) -> None:
        order.append("handler")

    on(evt, sender="someone else", priority=1)(handler)
    evt.connect(lambda sender: order.append("between"), priority=5)
    on(evt, priority=9)(handler)
    evt.emit("me")
    assert order == ["handler", "between"]


def test_two_methods_of_one_object_are_two_handlers(evt: Event) -> None:
    """Bound methods of one object are told apart by their functions."""

    class Service:
        def first(self, sender: object) -> str:
            return "first"

        def second(self, sender: object) -> str:
            return "second"

    service = Service()
    evt.connect(service.first)
    evt.connect(service.second)
    evt.connect(service.first)
    assert evt.emit() == ["first", "second"]


def test_disconnect_removes_a_handler(evt: Event) -> None:
    """A disconnected handler is not called any more; a bound method is found by equality."""

    class Service:
        def handle(self, sender: object) -> str:
            return "called"

    service = Service()
    evt.connect(service.handle)
    evt.disconnect(service.handle)
    assert evt.emit() == []


def test_disconnect_of_an_unknown_function_is_ignored(evt: Event) -> None:
    """`disconnect` of an unknown function does nothing, as in blinker."""
    evt.connect(lambda sender: "stays")
    evt.disconnect(lambda sender: "unknown")
    assert evt.emit() == ["stays"]


def test_change_takes_effect_at_the_next_emit(evt: Event) -> None:
    """A cached plan is used only until handlers change."""
    assert evt.emit() == []
    handler = evt.connect(lambda sender: 1)
    assert evt.emit() == [1]
    evt.disconnect(handler)
    assert evt.emit() == []


def test_running_emission_keeps_its_plan(evt: Event) -> None:
    """Connecting and disconnecting inside a handler takes effect at the next emission."""

    def late(sender: object) -> str:
        return "late"

    def leaving(sender: object) -> str:
        return "leaving"

    @on(evt, priority=1)
    def changing(sender: object) -> None:
        evt.connect(late)
        evt.disconnect(leaving)

    evt.connect(leaving)
    assert evt.emit() == ["leaving"]
    assert evt.emit() == ["late"]


def test_any_is_blinkers_own(evt: Event) -> None:
    """`ANY` is the same object as blinker's."""
    assert ANY is blinker.ANY


def test_glob_is_no_name_of_an_event_made_directly() -> None:
    """`Event("user.*")` raises, because a glob cannot be emitted; `event("user.*")` is for connecting."""
    with pytest.raises(DeclarationError, match=r"user\.\*"):
        Event("user.*")


class Bare:
    def __call__(self) -> None: ...

    def named(self, *, sender: object) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        lambda: None,
        lambda **kwargs: None,
        lambda *, sender: None,
        Bare(),
        Bare().named,
        functools.partial(lambda sender: None, sender=1),
        functools.partial(lambda sender: None, 1),
    ],
)
def test_a_handler_without_a_parameter_for_the_sender_is_refused(evt: Event, handler: Call) -> None:
    """The declaration of a handler without a parameter for the sender raises, because every emit would fail."""
    with pytest.raises(DeclarationError, match=r"shop\.bare takes \(.*\), and no sender"):
        on(evt, name="shop.bare")(handler)
    assert not evt.receivers


def test_an_offloaded_handler_without_a_parameter_for_the_sender_is_refused(evt: Event, app: Celery) -> None:
    """An offloaded handler without a parameter for the sender raises and becomes no task."""
    with pytest.raises(DeclarationError, match=r"shop\.bare takes \(\), and no sender"):
        on(evt, name="shop.bare", offload=True)(lambda: None)
    assert not evt.receivers
    assert "shop.bare" not in app.tasks


def test_a_generator_and_an_async_handler_without_parameters_are_refused(evt: Event) -> None:
    """Generators and async handlers without parameters raise at the declaration, before they run."""

    async def load() -> None: ...

    def each() -> Any:
        yield 1

    for handler in (load, each):
        with pytest.raises(DeclarationError, match="no sender"):
            on(evt)(handler)


def test_a_condition_without_parameters_is_refused(evt: Event) -> None:
    """A condition without parameters raises at the declaration, because each emit would skip its handler."""
    with pytest.raises(DeclarationError, match=r"its condition takes \(\), and no sender"):
        on(evt, condition=lambda: True)(lambda sender: None)


@pytest.mark.parametrize(
    "handler",
    [
        lambda sender: None,
        lambda *args: None,
        lambda order=None, **kwargs: None,
        print,
        [].append,
        int,
        functools.partial(print, "x"),
        functools.wraps(lambda: None)(lambda *args, **kwargs: None),
    ],
)
def test_a_handler_that_takes_the_sender_somehow_is_heard(evt: Event, handler: Call) -> None:
    """A handler may take the sender under any name, through `*args` or behind a decorator."""
    on(evt)(handler)
    assert len(evt.receivers) == 1
