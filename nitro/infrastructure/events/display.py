"""Display names of senders, for logs, Flower and the command line."""

from __future__ import annotations

import re

from blinker import ANY

from nitro.infrastructure.events.handler import identity_of

_FIELD_START = re.compile(r" (?=[^\W\d]\w*=)")


def describe_sender(sender: object) -> str:
    """Returns the display name of a sender: `Order:o1`, with the fields that `__nitro_show__` of its class allows."""
    if sender is ANY:
        return "ANY"
    if isinstance(sender, type):
        return sender.__name__
    identity = identity_of(sender)
    if identity is None:
        return type(sender).__name__
    cls, key = identity
    return f"{cls.__name__}:{key}" + "".join(
        _describe_field(sender, name) for name in getattr(cls, "__nitro_show__", ())
    )


def split_shown_fields(display: str) -> tuple[str, str | None]:
    """Splits a display name into the sender and its shown fields."""
    sender, fields = _FIELD_START.split(display, 1) if _FIELD_START.search(display) else (display, None)
    return sender, fields


def _describe_field(sender: object, name: str) -> str:
    try:
        return f" {name}={getattr(sender, name)!r}"
    except Exception as error:  # noqa: BLE001  # a property of the user's class; monitoring must not fail an emit
        return f" {name}=<{type(error).__name__}>"
