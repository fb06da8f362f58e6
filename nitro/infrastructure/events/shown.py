"""Shown: a sender as logs, Flower and the command line name it."""

from __future__ import annotations

from blinker import ANY

from nitro.infrastructure.events.handler import identity_of


def shown(sender: object) -> str:
    """A sender without its field values: `Order:o1`, and what `__nitro_show__` of its class adds."""
    if sender is ANY:
        return "ANY"
    if isinstance(sender, type):
        return sender.__name__
    identity = identity_of(sender)
    if identity is None:
        return type(sender).__name__
    cls, key = identity
    fields = "".join(f" {field}={getattr(sender, field)!r}" for field in getattr(cls, "__nitro_show__", ()))
    return f"{cls.__name__}:{key}{fields}"
