"""The objects that are stored together with one: made consistent before a session sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, RelationshipDirection, Session, make_transient
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import SQLModel

Duplicates = dict[int, SQLModel]

DYNAMIC_LOADERS = ("dynamic", "write_only")
"""Kinds of relationships that are asked for each time, and hold nothing."""


def reachable_objects(entity: SQLModel) -> list[SQLModel]:
    """The entity, then every loaded object that is stored along with it, one object for each row.

    Where several copies of one row are reachable, the first takes the place of the others in the loaded
    relationships: a session refuses two copies.
    """
    objects = list(_cascaded_objects(entity))
    copies = _find_duplicates(objects)
    if not copies:
        return objects
    for found in objects:
        _replace_duplicates(found, copies)
    return list(_cascaded_objects(entity))


def evict_duplicates(session: Session, objects: Iterable[SQLModel]) -> None:
    """Write and then release other copies that the session holds of these objects."""
    for found in objects:
        key = state_of(found).key
        held = session.identity_map.get(key) if key is not None else None
        if held is not None and held is not found:
            session.flush()
            session.expunge(held)


def make_deleted_transient(objects: Iterable[SQLModel]) -> None:
    """Make what was deleted through its session new again."""
    for found in objects:
        if state_of(found).was_deleted:
            make_transient(found)


def outdated_references(objects: Iterable[SQLModel]) -> list[tuple[SQLModel, list[str]]]:
    """The loaded references to one object whose foreign key was changed and they were not: they lead elsewhere now."""
    found = (
        (one, [name for name in loaded_relationships(state_of(one)) if _is_outdated(one, name)]) for one in objects
    )
    return [(one, names) for one, names in found if names]


def state_of(entity: object) -> InstanceState[Any]:
    """What SQLAlchemy knows of an instance."""
    state: InstanceState[Any] = inspect(entity)
    return state


def known_id(entity: SQLModel) -> object:
    """The id of an instance, also of one without a table, or None; never asks the database for an expired one."""
    known: object = entity.__dict__.get("id")
    state: InstanceState[Any] | None = inspect(entity, raiseerr=False)
    return state.identity[0] if known is None and state is not None and state.identity else known


def loaded_relationships(state: InstanceState[Any]) -> list[str]:
    """The names of the relationships that are loaded, or were given."""
    held = (relation for relation in state.mapper.relationships if relation.key in state.dict)
    return [relation.key for relation in held if relation.lazy not in DYNAMIC_LOADERS]


def related_objects(value: Any) -> list[Any]:
    """What a loaded relationship holds: the objects of a collection, the one object, or nothing."""
    if value is None or isinstance(value, SQLModel):
        return [] if value is None else [value]
    return list(value.values() if isinstance(value, dict) else value)


def _is_outdated(entity: SQLModel, name: str) -> bool:
    state = state_of(entity)
    relation = state.mapper.relationships[name]
    if state.key is None or name in state.committed_state or relation.direction is not RelationshipDirection.MANYTOONE:
        return False
    changed = state.committed_state
    return any(state.mapper.get_property_by_column(column).key in changed for column in relation.local_columns)


def _cascaded_objects(entity: SQLModel) -> Iterator[SQLModel]:
    state = state_of(entity)
    yield entity
    related: Iterator[tuple[Any, ...]] = state.mapper.cascade_iterator("save-update", state)
    for found, *_ in related:
        if found is not entity:
            yield found


def _find_duplicates(objects: Iterable[SQLModel]) -> Duplicates:
    """Every second copy of a row, by its address, and the first copy that replaces it."""
    first: dict[Any, SQLModel] = {}
    second: Duplicates = {}
    for found in objects:
        key = state_of(found).key
        kept = first.setdefault(key, found) if key is not None else found
        if kept is not found:
            second[id(found)] = kept
    return second


def _replace_duplicates(found: SQLModel, copies: Duplicates) -> None:
    state = state_of(found)
    for name in loaded_relationships(state):
        value = state.dict[name]
        if not any(id(member) in copies for member in related_objects(value)):
            continue
        if isinstance(value, list):
            for index, member in enumerate(value):
                list.__setitem__(value, index, copies.get(id(member), member))
        else:
            unified = [copies.get(id(member), member) for member in related_objects(value)]
            set_committed_value(found, name, unified[0] if isinstance(value, SQLModel) else unified)
