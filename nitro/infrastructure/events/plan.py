"""Plan: which handlers an emission runs, in which order. Pure: no registry, clock, database or broker."""

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
    """The handlers that one sender's emission meets, each function once.

    Attributes:
        inline: highest priority first, equal ones in the order they were connected.
        offloaded: in the same order among themselves.
        groups: the inline ones again, cut where the priority changes.
        direct_calls: the inline ones once more, when all handlers are plain; for the short way through an emit.
    """

    inline: tuple[Handler, ...]
    offloaded: tuple[Handler, ...]
    groups: tuple[tuple[Handler, ...], ...]
    direct_calls: tuple[DirectCall, ...] | None

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """All of them, in the order of an emission."""
        return self.inline + self.offloaded


def build_plan(handlers: Iterable[Handler]) -> Plan:
    """The plan of handlers that all hear one sender, given in the order they were connected."""
    ordered = sorted(_with_unique_names(_without_duplicates(handlers)), key=lambda handler: -handler.priority)
    inline = tuple(handler for handler in ordered if handler.offload is None)
    return Plan(
        inline=inline,
        offloaded=tuple(handler for handler in ordered if handler.offload is not None),
        groups=tuple(tuple(group) for _, group in groupby(inline, key=lambda handler: handler.priority)),
        direct_calls=tuple((each.condition, each.call, each) for each in inline)
        if all(map(_is_directly_callable, ordered))
        else None,
    )


def _is_directly_callable(handler: Handler) -> bool:
    """Whether an emit has nothing to do for it but to call it."""
    return handler.offload is None and handler.kind == "sync" and handler.on_error == "raise"


def _without_duplicates(handlers: Iterable[Handler]) -> list[Handler]:
    first: dict[Hashable, Handler] = {}
    for handler in handlers:
        first.setdefault(handler.key, handler)
    return list(first.values())


def _with_unique_names(handlers: list[Handler]) -> list[Handler]:
    """The second inline handler of a name becomes `name#2`; a task's name is never changed."""
    seen = Counter(handler.name for handler in handlers if handler.offload is not None)

    def apart(handler: Handler) -> Handler:
        if handler.offload is not None:
            return handler
        seen[handler.name] += 1
        count = seen[handler.name]
        return handler if count == 1 else replace(handler, name=f"{handler.name}#{count}")

    return [apart(handler) for handler in handlers]


class PlanCache:
    """The cached plans of one set of handlers, which never changes: one for each sender they tell apart.

    Attributes:
        shared_plan: the one plan, when they tell no sender from another.
        direct_calls: its handlers, when an emit has nothing to do but to call them.
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
        """The plan of an emission by `sender`."""
        if self.shared_plan is not None:
            return self.shared_plan
        key = sender_key(sender)
        slot = (type(sender), key if key in self._keys else None)
        plan = self._by_sender.get(slot)
        if plan is None or self._needs_isinstance:
            plan = build_plan(handler for handler in self.handlers if handler.sender.matches(sender, key))
            self._by_sender[slot] = plan
        return plan


def _has_custom_instancecheck(cls: type | None) -> bool:
    """Whether `isinstance(…, cls)` may differ between instances of one type, as with a runtime-checkable Protocol."""
    return cls is not None and type(cls).__instancecheck__ not in (type.__instancecheck__, ABCMeta.__instancecheck__)
