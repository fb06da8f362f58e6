"""The list of handlers of this process, for the command line and for the control command of a worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nitro.infrastructure.events import Event
from nitro.infrastructure.events.handler import Handler
from nitro.infrastructure.offload.options import Offload


def describe_handlers(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Returns the handlers of these events, in the order in which an emit runs them."""
    return [row for event in events for row in _describe_event(event)]


def _describe_event(event: Event) -> Iterator[dict[str, Any]]:
    for position, handler in enumerate(event.handlers, 1):
        yield {
            "event": event.name,
            "position": position,
            "where": "inline" if handler.offload is None else "queue",
            "handler": handler.name,
            "kind": handler.kind,
            "priority": handler.priority,
            "sender": _sender_text(handler),
            "condition": handler.condition is not None,
            "delivery": None if handler.offload is None else handler.offload.delivery,
            "options": _explicit_options(handler),
        }


def _explicit_options(handler: Handler) -> dict[str, Any]:
    """Returns the options that the handler's `offload=` sets, without `delivery`."""
    if not isinstance(handler.offload, Offload):
        return {}
    names = handler.offload.model_fields_set - {"delivery"}
    return {name: getattr(handler.offload, name) for name in sorted(names)}


def _sender_text(handler: Handler) -> str | None:
    """Returns the text of the `sender=` of a handler; None for all senders."""
    sender = handler.sender
    if sender.key is None:
        return None
    if sender.cls is not None:
        return sender.cls.__name__
    if isinstance(sender.key, tuple):
        kind, key = sender.key
        return repr(key) if kind in (str, int) else f"{kind.__name__}:{key}"
    return "one object"
