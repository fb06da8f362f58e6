"""Event and Namespace: blinker's, with an order, conditions, globs, entity senders and offloads."""

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
_lock = ForkSafeLock()  # of all changes to handlers, events and plans; an emit with a cached plan takes none
_ever_connected: weakref.WeakSet[Event] = weakref.WeakSet()
_latest_by_name: dict[str, weakref.ref[Handler]] = {}  # that was connected under a name


def is_glob(name: str) -> bool:
    """Whether a name stands for many events."""
    return any(sign in name for sign in "*?[")


class Event(blinker.NamedSignal):
    """A named event: handlers are connected to it, and it is emitted.

    It is a blinker signal: `muted()`, `connected_to()`, `receivers_for()`, `send()` and the rest of
    blinker work on it.
    """

    # The functions of the public interface are its methods too; `api` sets them, which lies above.
    emit: ClassVar[Callable[..., Emission]]
    emit_async: ClassVar[Callable[..., Coroutine[Any, Any, Emission]]]

    def __init__(self, name: str, doc: str | None = None, namespace: Namespace | None = None) -> None:
        if is_glob(name) and not isinstance(self, Glob):
            raise DeclarationError(f"{name!r} is a glob, not the name of an event; event({name!r}) gives what connects")
        check_name("event", name)
        self._namespace = Namespace() if namespace is None else namespace
        self._handlers: tuple[Handler, ...] = ()
        self.plan_cache: PlanCache | None = None
        self._version = 0
        super().__init__(name, doc)

    def connect(self, receiver: F, sender: Any = ANY, weak: bool = False, **options: Unpack[ConnectOptions]) -> F:
        """Connect a handler and return it: what `on(event, sender=…, weak=…, **options)` does.

        Raises:
            DeclarationError: the handler, or an option of it, could not work.
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
        """Disconnect a handler, or only what it hears of `sender`; one that is not connected is ignored."""
        if receiver is None:
            return
        key, only = function_key(unwrap_staticmethod(receiver)), None if sender is ANY else sender_key(sender)
        with _lock:
            self._handlers = tuple(h for h in self._handlers if h.key != key or (only and h.sender.key != only))
            self._invalidate_plans()
        if self.receiver_disconnected.receivers:
            self.receiver_disconnected.send(self, receiver=receiver, sender=sender)

    def explain(self, sender: Any = ANY, /, *args: Any, **kwargs: Any) -> Explanation:
        """What an emit would do now: its handlers in order, with the verdict on each; runs conditions, no handler."""
        from nitro.infrastructure.events.explain import explain

        call = Call(sender=sender, args=args, kwargs=kwargs)
        return explain(self.name, pipeline.plan_for_call(self, call), call)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """All that hear it, its own and those of matching globs, in the order in which an emit takes them."""
        with _lock:
            return build_plan(self._heard_handlers()).handlers

    def plan_for(self, sender: object) -> Plan:
        """The plan of an emission by `sender`; built anew only after handlers have changed."""
        plans = self.plan_cache
        if plans is None:
            load_journal_if_enabled()
            with _lock:
                version = self._version
                plans = PlanCache(() if self._muted else self._heard_handlers())
                if version == self._version:
                    self.plan_cache = plans
        return plans.get(sender)

    def _heard_handlers(self) -> tuple[Handler, ...]:
        """Its own living handlers and those of matching globs, in the order they were connected."""
        heard = [*self._living_handlers()]
        for glob in self._namespace.globs.values():
            if not glob.is_muted and fnmatchcase(self.name, glob.name):
                heard += glob._living_handlers()
        return tuple(sorted(heard, key=lambda handler: handler.order))

    def _living_handlers(self) -> tuple[Handler, ...]:
        self._handlers = tuple(handler for handler in self._handlers if handler.is_alive)
        return self._handlers

    def _invalidate_plans(self) -> None:
        self._version += 1
        self.plan_cache = None

    def _on_dead_reference(self, _reference: object) -> None:
        """A weak function or a sender has died."""
        self._invalidate_plans()

    # What blinker promises of a signal, kept true for globs and entity senders.

    @property
    def is_muted(self) -> bool:
        """Whether emits call and queue nothing for now."""
        return self._muted

    @is_muted.setter
    def is_muted(self, muted: bool) -> None:
        self._muted = muted
        self._invalidate_plans()

    @property
    def receivers(self) -> dict[Any, Any]:
        """All functions that hear it, by key; empty when nobody does."""
        with _lock:
            return {handler.key: handler.function for handler in self._heard_handlers()}

    @receivers.setter
    def receivers(self, _empty: dict[Any, Any]) -> None:
        """blinker's constructor sets it; here it is derived from the handlers."""

    def receivers_for(self, sender: Any) -> Generator[Function, None, None]:
        """The functions that an emit by `sender` would call or queue, in that order."""
        key = sender_key(sender)
        with _lock:
            plan = build_plan(handler for handler in self._heard_handlers() if handler.sender.matches(sender, key))
        for handler in plan.handlers:
            if handler.function is not None:
                yield handler.function

    def has_receivers_for(self, sender: Any) -> bool:
        """Whether an emit by `sender` would call or queue anything."""
        return next(self.receivers_for(sender), None) is not None

    def send(self, sender: Any = None, /, *, _async_wrapper: Any = None, **kwargs: Any) -> list[tuple[Function, Any]]:
        """Emit it and return what blinker would: the inline functions that ran, each with its result.

        Async ones need no wrapper here.
        """
        _, outcomes = pipeline.emit_with_results(self, Call(sender=sender, kwargs=kwargs))
        return [(handler.function or handler.call, result) for handler, result in outcomes]

    async def send_async(
        self, sender: Any = None, /, *, _sync_wrapper: Any = None, **kwargs: Any
    ) -> list[tuple[Function, Any]]:
        """Emit it, await its inline handlers, and return each function with its result; sync ones need no wrapper."""
        _, outcomes = await pipeline.emit_async(self, Call(sender=sender, kwargs=kwargs))
        return [(handler.function or handler.call, result) for handler, result in outcomes]


class Glob(Event):
    """All events of a namespace whose name matches, also those created later; it cannot be emitted."""

    def plan_for(self, _sender: object) -> Plan:
        """Refuse: a glob is no event.

        Raises:
            EmitError: always.
        """
        raise EmitError(f"{self.name!r} is a glob and cannot be emitted; emit the events of filter_signals()")

    def _invalidate_plans(self) -> None:
        for event in self._namespace.events():
            event._invalidate_plans()


class Namespace(blinker.Namespace):
    """Events by name. A name with `*`, `?` or `[` is a glob, kept aside in `globs`."""

    def __init__(self) -> None:
        super().__init__()
        self.globs: dict[str, Glob] = {}

    def event(self, name: str, doc: str | None = None) -> Event:
        """The event of that name, the same at each call.

        Raises:
            DeclarationError: the name is not a text, or empty, or cannot be stored.
        """
        if not isinstance(name, str) or not name:
            raise DeclarationError(f"{name!r} is no name of an event; give a text such as 'order-placed'")
        with _lock:
            found = self.globs.get(name) or self.get(name)
            if not isinstance(found, Event):
                found = self._add(name)
            if doc:
                found.__doc__ = doc
        return found

    def _add(self, name: str) -> Event:
        if is_glob(name):
            self.globs[name] = glob = Glob(name, namespace=self)
            return glob
        self[name] = event = Event(name, namespace=self)
        return event

    def signal(self, name: str, doc: str | None = None) -> Event:
        """blinker's word for `event`."""
        return self.event(name, doc)

    def filter(self, pattern: str) -> dict[str, Event]:
        """The events whose name matches a glob, by name, in the order they were created."""
        return {event.name: event for event in self.events() if fnmatchcase(event.name, pattern)}

    def events(self) -> list[Event]:
        """All of them, without globs, in the order they were created."""
        return [event for event in list(self.values()) if isinstance(event, Event)]


def _disconnect_replaced(new: Handler) -> None:
    """Disconnect what a handler is the new definition of, whatever it hears, so that it is heard once."""
    known = _latest_by_name.get(new.name)
    _latest_by_name[new.name] = weakref.ref(new)
    latest = None if known is None else known()
    if known is None or (latest is not None and new.offload is None and new.has_same_origin_as(latest)):
        return
    for event in _living_connected_events():
        for handler in event._handlers:
            if new.replaces(handler):
                event.disconnect(handler.function)


def connected_events() -> list[Event]:
    """The events that somebody has connected to, globs among them, by name."""
    return sorted((event for event in _living_connected_events() if event.handlers), key=lambda event: event.name)


def _living_connected_events() -> list[Event]:
    """Every living event that has had a handler, copied under the lock: a set must not grow while it is iterated."""
    with _lock:
        return list(_ever_connected)


default_namespace = Namespace()
"""Where `event(name)` and `on(name)` look."""
