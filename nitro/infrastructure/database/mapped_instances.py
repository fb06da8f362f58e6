"""Search for mapped instances in the values of an emit, at any depth, and for their sessions."""

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
"""Containers whose members are searched; subclasses count too."""


class _PartsGetters(dict[type, PartsGetter | None]):
    """The function that returns the values held by an instance, by class; None if they cannot be mapped instances."""

    def __missing__(self, cls: type) -> PartsGetter | None:
        self[cls] = getter = _find_parts_getter(cls)
        return getter


_parts_getters = _PartsGetters()


def attached_states(values: Iterable[object]) -> dict[Session, States]:
    """Returns the states of the attached instances by session, in the order of the search."""
    states_by_session: dict[Session, States] = {}
    for state in mapped_states(values):
        if (session := state.session) is not None:
            states_by_session.setdefault(session, []).append(state)
    return states_by_session


def mapped_states(values: Iterable[object]) -> Iterator[InstanceState[Any]]:
    """Yields the state of each mapped instance in these values, at any depth. Each instance is yielded once."""
    waiting, seen_ids = _with_parts(list(values)), set[int]()
    for value in waiting:  # the loop appends to the list; the list keeps its objects alive, so no id is reused
        if id(value) in seen_ids:
            continue
        seen_ids.add(id(value))
        parts = _parts_getters[type(value)]
        assert parts is not None
        if parts is _attribute_values and (state := _state_of(value)) is not None:
            yield state
        waiting += _with_parts(list(parts(value)))


def _with_parts(values: list[object]) -> list[object]:
    """Returns the values that are mapped instances or may hold one. Decides by class first, which is fast."""
    searched_types = {cls for cls in set(map(type, values)) if _parts_getters[cls] is not None}
    return [value for value in values if type(value) in searched_types] if searched_types else []


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
    """Returns the loaded attributes and relationships, and pydantic's extra and private values."""
    if not isinstance(instance, BaseModel):
        return [*vars(instance).values()]
    pydantic_dicts = (getattr(instance, name, None) for name in ("__pydantic_extra__", "__pydantic_private__"))
    return [*vars(instance).values(), *(value for values in pydantic_dicts if values for value in values.values())]


def _field_values(instance: Any) -> list[object]:
    attributes = getattr(instance, "__dict__", {})
    in_slots = (field.name for field in fields(instance) if field.name not in attributes)
    return [*attributes.values(), *(getattr(instance, name, None) for name in in_slots)]


def _state_of(instance: object) -> InstanceState[Any] | None:
    """Returns SQLAlchemy's state of an instance; None if it is not mapped or was created without its constructor."""
    try:
        return instance_state(instance)
    except AttributeError:
        return None


@event.listens_for(Mapper, "instrument_class")
def _forget_class(_mapper: Mapper[Any], cls: type) -> None:
    """Drops the entry of a class that is mapped imperatively after it was first searched."""
    _parts_getters.pop(cls, None)
