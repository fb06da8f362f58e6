"""Nitro: the side effects of domain events, inline or as Celery tasks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nitro.domain.entities.base_entity import Entity as Entity
    from nitro.infrastructure.database import transaction as transaction
    from nitro.infrastructure.events import ANY as ANY
    from nitro.infrastructure.events import Event as Event
    from nitro.infrastructure.events import Namespace as Namespace
    from nitro.infrastructure.events import drain as drain
    from nitro.infrastructure.events import emit as emit
    from nitro.infrastructure.events import emit_async as emit_async
    from nitro.infrastructure.events import event as event
    from nitro.infrastructure.events import on as on
    from nitro.infrastructure.offload import Offload as Offload
    from nitro.infrastructure.offload import current_delivery as current_delivery

_HOMES = {
    "ANY": "nitro.infrastructure.events",
    "Entity": "nitro.domain.entities.base_entity",
    "Event": "nitro.infrastructure.events",
    "Namespace": "nitro.infrastructure.events",
    "Offload": "nitro.infrastructure.offload",
    "current_delivery": "nitro.infrastructure.offload",
    "drain": "nitro.infrastructure.events",
    "emit": "nitro.infrastructure.events",
    "emit_async": "nitro.infrastructure.events",
    "event": "nitro.infrastructure.events",
    "on": "nitro.infrastructure.events",
    "transaction": "nitro.infrastructure.database",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605  # the names and their homes are one table


if not TYPE_CHECKING:  # a module with __getattr__ has every name for a type checker

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'nitro' has no attribute {name!r}")
        value: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
