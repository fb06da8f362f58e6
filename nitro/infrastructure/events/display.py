"""Shown: a sender as logs, Flower and the command line name it."""

from __future__ import annotations

import re

from blinker import ANY

from nitro.infrastructure.events.handler import identity_of

_FIELD_START = re.compile(r" (?=[^\W\d]\w*=)")


def describe_sender(sender: object) -> str:
    """A sender without its field values: `Order:o1`, and what `__nitro_show__` of its class adds."""
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


def split_shown_fields(shown: str) -> tuple[str, str | None]:
    """A sender that is shown, and what `__nitro_show__` adds to it, by which alone nobody finds the sender."""
    sender, fields = _FIELD_START.split(shown, 1) if _FIELD_START.search(shown) else (shown, None)
    return sender, fields


def _describe_field(sender: object, name: str) -> str:
    try:
        return f" {name}={getattr(sender, name)!r}"
    except Exception as error:  # noqa: BLE001  # of the user's class; no emit fails for what monitoring shows
        return f" {name}=<{type(error).__name__}>"
