"""Event, Glob and Namespace: blinker's classes with priorities, conditions, globs, entity senders and offloads."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Coroutine, Generator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, Unpack

import blinker
from blinker import ANY

from nitro.errors import DeclarationError, EmitError
from nitro.infrastructure.events import pipeline
from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.handler import Function, Handler, function_key, sender_key, unwrap_staticmethod
from nitro.infrastructure.events.names import check_name
from nitro.infrastructure.events.observers import load_journal_if_enabled
from nitro.infrastructure.events.plan import Plan, PlanCache, build_plan
from nitro.infrastructure.events.ports import Call
from nitro.infrastructure.events.registration import ConnectOptions, make_handler
from nitro.infrastructure.threads import ForkSafeLock

if TYPE_CHECKING:
    from nitro.infrastructure.events.explain import Explanation

F = TypeVar("F", bound=Callable[..., Any])

_handler_order = itertools.count()
_lock = ForkSafeLock()  # guards handlers, events and plans; an emit with a cached plan does not take it
_ever_connected: weakref.WeakSet[Event] = weakref.WeakSet()
_latest_by_name: dict[str, weakref.ref[Handler]] = {}  # name → the handler connected last


def is_glob(name: str) -> bool:
    """Whether a name is a glob, which means many events."""
    return any(sign in name for sign in "*?[")


class Event(blinker.NamedSignal):
    """A named event: handlers are connected to it, and it is emitted.

    It is a blinker signal, so `muted()`, `connected_to()`, `receivers_for()`, `send()` and the other methods of
    blinker work on it.
    """

    # The module `api` sets them to its functions: it imports this module.
    emit: ClassVar[Callable[..., Emission]]
    emit_async: ClassVar[Callable[..., Coroutine[Any, Any, Emission]]]

    def __init__(self, name: str, doc: str | None = None, namespace: Namespace | None = None) -> None:
        if is_glob(name) and not isinstance(self, Glob):
            raise DeclarationError(f"{name!r} is a glob, not the name of an event; use event({name!r})")
        check_name("event", name)
        self._namespace = Namespace() if namespace is None else namespace
        self._handlers: tuple[Handler, ...] = ()
        self.plan_cache: PlanCache | None = None
        self._version = 0
        super().__init__(name, doc)

    def connect(self, receiver: F, sender: Any = ANY, weak: bool = False, **options: Unpack[ConnectOptions]) -> F:
        """Connects a handler and returns it, as `on(event, sender=…, weak=…, **options)` does.

        Raises:
            DeclarationError: the handler, or one of its options, cannot work.
        """
        load_journal_if_enabled()
        handler = make_handler(
            unwrap_staticmethod(receiver), next(_handler_order), self._on_dead_reference, sender, weak, **options
        )
        _disconnect_replaced(handler)
        with _lock:
            self._handlers += (handler,)
            self._invalidate_plans()
            _ever_connected.add(self)
        if handler.is_async and handler.offload is None:
            from nitro.infrastructure.events import background

            background.drain_at_exit()
        if self.receiver_connected.receivers:
            self.receiver_connected.send(self, receiver=receiver, sender=sender, weak=weak)
        return receiver

    def disconnect(self, receiver: Function | None, sender: Any = ANY) -> None:
        """Disconnects a handler, or only its connection to `sender`; an unconnected handler is ignored."""
        if receiver is None:
            return
        key = function_key(unwrap_staticmethod(receiver))
        heard = None if sender is ANY else sender_key(sender)
        with _lock:
            self._handlers = tuple(h for h in self._handlers if h.key != key or (heard and h.sender.key != heard))
            self._invalidate_plans()
        if self.receiver_disconnected.receivers:
            self.receiver_disconnected.send(self, receiver=receiver, sender=sender)

    def explain(self, sender: Any = ANY, /, *args: Any, **kwargs: Any) -> Explanation:
        """Returns the handlers of an emit in order, each with the result of its condition; calls no handler."""
        from nitro.infrastructure.events.explain import explain

        call = Call(sender=sender, args=args, kwargs=kwargs)
        return explain(self.name, pipeline.plan_for_call(self, call), call)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The handlers of the event and of matching globs, in the order of an emit."""
        with _lock:
            return build_plan(self._heard_handlers()).handlers

    def plan_for(self, sender: object) -> Plan:
        """Returns the plan of an emission by `sender`, which is cached until a handler changes."""
        cache = self.plan_cache
        if cache is None:
            load_journal_if_enabled()
            with _lock:
                version = self._version
                cache = PlanCache(() if self._muted else self._heard_handlers())
                if version == self._version:
                    self.plan_cache = cache
        return cache.get(sender)

    def _heard_handlers(self) -> tuple[Handler, ...]:
        """Returns the living handlers of the event and of matching globs, in the order they were connected."""
        handlers = [*self._living_handlers()]
        for glob in self._namespace.globs.values():
            if not glob.is_muted and fnmatchcase(self.name, glob.name):
                handlers += glob._living_handlers()
        return tuple(sorted(handlers, key=lambda handler: handler.order))

    def _living_handlers(self) -> tuple[Handler, ...]:
        self._handlers = tuple(handler for handler in self._handlers if handler.is_alive)
        return self._handlers

    def _invalidate_plans(self) -> None:
        self._version += 1
        self.plan_cache = None

    def _on_dead_reference(self, _reference: object) -> None:
        """Drops the cached plans: a weakly referenced function or sender no longer exists."""
        self._invalidate_plans()

    # Methods of blinker's signals, overridden so that they know globs and entity senders.

    @property
    def is_muted(self) -> bool:
        """Whether the event is muted: an emit calls and queues no handler."""
        return self._muted

    @is_muted.setter
    def is_muted(self, muted: bool) -> None:
        self._muted = muted
        self._invalidate_plans()

    @property
    def receivers(self) -> dict[Any, Any]:
        """The functions of all handlers of the event, by key."""
        with _lock:
            return {handler.key: handler.function for handler in self._heard_handlers()}

    @receivers.setter
    def receivers(self, _empty: dict[Any, Any]) -> None:
        """Ignores the assignment of blinker's constructor: the property is derived from the handlers."""

    def receivers_for(self, sender: Any) -> Generator[Function, None, None]:
        """Yields the functions that an emit by `sender` would call or queue, in that order."""
        key = sender_key(sender)
        with _lock:
            plan = build_plan(handler for handler in self._heard_handlers() if handler.sender.matches(sender, key))
        for handler in plan.handlers:
            if handler.function is not None:
                yield handler.function

    def has_receivers_for(self, sender: Any) -> bool:
        """Whether an emit by `sender` would call or queue a handler."""
        return next(self.receivers_for(sender), None) is not None

    def send(self, sender: Any = None, /, *, _async_wrapper: Any = None, **kwargs: Any) -> list[tuple[Function, Any]]:
        """Emits the event and returns the inline functions that ran, each with its result, as blinker does.

        Async functions need no wrapper.
        """
        _, results = pipeline.emit_with_results(self, Call(sender=sender, kwargs=kwargs))
        return [(handler.function or handler.call, result) for handler, result in results]

    async def send_async(
        self, sender: Any = None, /, *, _sync_wrapper: Any = None, **kwargs: Any
    ) -> list[tuple[Function, Any]]:
        """Emits the event and awaits its inline handlers; returns each function with its result."""
        _, results = await pipeline.emit_async(self, Call(sender=sender, kwargs=kwargs))
        return [(handler.function or handler.call, result) for handler, result in results]


class Glob(Event):
    """A pattern of event names; its handlers hear all events that match, also later ones. It cannot be emitted."""

    def plan_for(self, _sender: object) -> Plan:
        """Raises, because a glob cannot be emitted.

        Raises:
            EmitError: at every call.
        """
        raise EmitError(f"{self.name!r} is a glob and cannot be emitted; emit the events of filter_signals()")

    def _invalidate_plans(self) -> None:
        for event in self._namespace.events():
            event._invalidate_plans()


class Namespace(blinker.Namespace):
    """Events by name. A name with `*`, `?` or `[` is a glob, kept in `globs`."""

    def __init__(self) -> None:
        super().__init__()
        self.globs: dict[str, Glob] = {}

    def event(self, name: str, doc: str | None = None) -> Event:
        """Returns the event of that name, the same object at each call.

        Raises:
            DeclarationError: the name is not a str, or empty, or cannot be stored.
        """
        if not isinstance(name, str) or not name:
            raise DeclarationError(f"{name!r} is no name of an event; give a text such as 'order-placed'")
        with _lock:
            event = self.globs.get(name) or self.get(name)
            if not isinstance(event, Event):
                event = self._add(name)
            if doc:
                event.__doc__ = doc
        return event

    def _add(self, name: str) -> Event:
        if is_glob(name):
            self.globs[name] = glob = Glob(name, namespace=self)
            return glob
        self[name] = event = Event(name, namespace=self)
        return event

    def signal(self, name: str, doc: str | None = None) -> Event:
        """Returns the event of that name; blinker's name for `event`."""
        return self.event(name, doc)

    def filter(self, pattern: str) -> dict[str, Event]:
        """Returns the events whose name matches a glob, by name, in the order they were created."""
        return {event.name: event for event in self.events() if fnmatchcase(event.name, pattern)}

    def events(self) -> list[Event]:
        """Returns all events, without globs, in the order they were created."""
        return [event for event in list(self.values()) if isinstance(event, Event)]


def _disconnect_replaced(new: Handler) -> None:
    """Disconnects the older definitions of a handler from all events, so that only the new one runs."""
    reference = _latest_by_name.get(new.name)
    _latest_by_name[new.name] = weakref.ref(new)
    latest = None if reference is None else reference()
    if reference is None or (latest is not None and new.offload is None and new.has_same_origin_as(latest)):
        return
    for event in _living_connected_events():
        for handler in event._handlers:
            if new.replaces(handler):
                event.disconnect(handler.function)


def connected_events() -> list[Event]:
    """Returns the events and globs that have handlers, sorted by name."""
    return sorted((event for event in _living_connected_events() if event.handlers), key=lambda event: event.name)


def _living_connected_events() -> list[Event]:
    """Returns the living events that have had a handler; copied under the lock, because `connect` adds to the set."""
    with _lock:
        return list(_ever_connected)


default_namespace = Namespace()
"""The namespace of `event(name)`, `on(name)` and `emit(name)`."""
