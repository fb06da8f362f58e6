"""Plans: the handlers of an emission in their order. Pure functions, without registry, clock, database or broker."""

from __future__ import annotations

from abc import ABCMeta
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from nitro.infrastructure.events.handler import Function, Handler, sender_key

DirectCall = tuple[Function | None, Function, Handler]
"""Condition and function of a handler, and the handler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The handlers of an emission by one sender, each function once.

    Attributes:
        inline: inline handlers, highest priority first; equal priorities in the order they were connected.
        offloaded: offloaded handlers in the same order.
        groups: the inline handlers, grouped by priority.
        direct_calls: the inline handlers for the fast path of `emit`, or None if a handler needs the pipeline.
    """

    inline: tuple[Handler, ...]
    offloaded: tuple[Handler, ...]
    groups: tuple[tuple[Handler, ...], ...]
    direct_calls: tuple[DirectCall, ...] | None

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """All handlers, in the order of an emission."""
        return self.inline + self.offloaded


def build_plan(handlers: Iterable[Handler]) -> Plan:
    """Returns the plan of handlers that hear one sender, given in the order they were connected."""
    ordered = sorted(_with_unique_names(_without_duplicates(handlers)), key=lambda handler: -handler.priority)
    inline = tuple(handler for handler in ordered if handler.offload is None)
    return Plan(
        inline=inline,
        offloaded=tuple(handler for handler in ordered if handler.offload is not None),
        groups=tuple(tuple(group) for _, group in groupby(inline, key=lambda handler: handler.priority)),
        direct_calls=tuple((handler.condition, handler.call, handler) for handler in inline)
        if all(map(_is_directly_callable, ordered))
        else None,
    )


def _is_directly_callable(handler: Handler) -> bool:
    """Whether an emit only has to call the handler: inline, sync, and its errors are raised."""
    return handler.offload is None and handler.kind == "sync" and handler.on_error == "raise"


def _without_duplicates(handlers: Iterable[Handler]) -> list[Handler]:
    first: dict[Hashable, Handler] = {}
    for handler in handlers:
        first.setdefault(handler.key, handler)
    return list(first.values())


def _with_unique_names(handlers: list[Handler]) -> list[Handler]:
    """Renames the second inline handler of a name to `name#2`; the name of a task stays."""
    seen = Counter(handler.name for handler in handlers if handler.offload is not None)

    def with_number(handler: Handler) -> Handler:
        if handler.offload is not None:
            return handler
        seen[handler.name] += 1
        count = seen[handler.name]
        return handler if count == 1 else replace(handler, name=f"{handler.name}#{count}")

    return [with_number(handler) for handler in handlers]


class PlanCache:
    """The cached plans of a fixed set of handlers: one plan for each sender that a handler distinguishes.

    Attributes:
        shared_plan: the plan of all senders, if no handler has a sender.
        direct_calls: `direct_calls` of the shared plan.
    """

    __slots__ = ("_by_sender", "_keys", "_needs_isinstance", "direct_calls", "handlers", "shared_plan")

    def __init__(self, handlers: tuple[Handler, ...]) -> None:
        self.handlers = handlers
        self._keys = frozenset(handler.sender.key for handler in handlers if handler.sender.key is not None)
        self._needs_isinstance = any(_has_custom_instancecheck(handler.sender.cls) for handler in handlers)
        self.shared_plan = None if self._keys else build_plan(handlers)
        self.direct_calls = None if self.shared_plan is None else self.shared_plan.direct_calls
        self._by_sender: dict[Hashable, Plan] = {}

    def get(self, sender: object) -> Plan:
        """Returns the plan of an emission by `sender`."""
        if self.shared_plan is not None:
            return self.shared_plan
        key = sender_key(sender)
        cache_key = (type(sender), key if key in self._keys else None)
        plan = self._by_sender.get(cache_key)
        if plan is None or self._needs_isinstance:
            plan = build_plan(handler for handler in self.handlers if handler.sender.matches(sender, key))
            self._by_sender[cache_key] = plan
        return plan


def _has_custom_instancecheck(cls: type | None) -> bool:
    """Whether `isinstance(…, cls)` may differ between instances of one type, as with a runtime-checkable Protocol."""
    return cls is not None and type(cls).__instancecheck__ not in (type.__instancecheck__, ABCMeta.__instancecheck__)
