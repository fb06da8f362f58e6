"""Mapped instances among the values of an emit, at any depth, and the sessions that they are attached to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Row, RowMapping, event, inspect
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.attributes import instance_state

States = list[InstanceState[Any]]
PartsGetter = Callable[[Any], Iterable[object]]

CONTAINER_TYPES: tuple[type, ...] = (
    list,
    tuple,
    set,
    frozenset,
    deque,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
"""Containers of which each member is looked at, also of a class derived from one."""


class _Known(dict[type, PartsGetter | None]):
    """By class: what gives the values that an instance holds, or None when it holds none that matter."""

    def __missing__(self, cls: type) -> PartsGetter | None:
        self[cls] = found = _find_parts_getter(cls)
        return found


_parts_getters = _Known()


def attached_states(values: Iterable[object]) -> dict[Session, States]:
    """The sessions that instances among these values are attached to, in the order in which they are met."""
    found: dict[Session, States] = {}
    for state in mapped_states(values):
        if (session := state.session) is not None:
            found.setdefault(session, []).append(state)
    return found


def mapped_states(values: Iterable[object]) -> Iterator[InstanceState[Any]]:
    """The states of all mapped instances in these values, whatever holds them; one that holds itself is met once."""
    waiting, seen = _with_parts(list(values)), set[int]()
    for value in waiting:  # it grows meanwhile, and keeps alive what `seen` knows by its address
        if id(value) in seen:
            continue
        seen.add(id(value))
        parts = _parts_getters[type(value)]
        assert parts is not None
        if parts is _attribute_values and (state := _state_of(value)) is not None:
            yield state
        waiting += _with_parts(list(parts(value)))


def _with_parts(values: list[object]) -> list[object]:
    """Those that may hold a mapped instance, or are one; nothing is done for each where no class of theirs may."""
    kinds = {kind for kind in set(map(type, values)) if _parts_getters[kind] is not None}
    return [value for value in values if type(value) in kinds] if kinds else []


def _find_parts_getter(cls: type) -> PartsGetter | None:
    if isinstance(inspect(cls, raiseerr=False), Mapper):
        return _attribute_values
    if issubclass(cls, Enum):
        return None
    if issubclass(cls, (dict, MappingProxyType, RowMapping)):
        return _keys_and_values
    if issubclass(cls, (*CONTAINER_TYPES, Row)):
        return iter
    if issubclass(cls, BaseModel):
        return _attribute_values
    return _field_values if is_dataclass(cls) else None


def _keys_and_values(mapping: Any) -> list[object]:
    return [*mapping, *mapping.values()]


def _attribute_values(instance: Any) -> list[object]:
    """The attributes that are there, loaded relationships among them, and what pydantic keeps beside them."""
    if not isinstance(instance, BaseModel):
        return [*vars(instance).values()]
    beside = (getattr(instance, name, None) for name in ("__pydantic_extra__", "__pydantic_private__"))
    return [*vars(instance).values(), *(value for held in beside if held for value in held.values())]


def _field_values(instance: Any) -> list[object]:
    held = getattr(instance, "__dict__", {})
    in_slots = (field.name for field in fields(instance) if field.name not in held)
    return [*held.values(), *(getattr(instance, name, None) for name in in_slots)]


def _state_of(instance: object) -> InstanceState[Any] | None:
    """SQLAlchemy's state of an instance; None of one of another kind, or that was made without a constructor."""
    try:
        return instance_state(instance)
    except AttributeError:
        return None


@event.listens_for(Mapper, "instrument_class")
def _forget_class(_mapper: Mapper[Any], cls: type) -> None:
    """A class that is mapped imperatively may have been met before."""
    _parts_getters.pop(cls, None)
