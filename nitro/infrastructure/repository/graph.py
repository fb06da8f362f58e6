"""The graph of objects that are stored together with an entity, made consistent before a session sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, RelationshipDirection, Session, make_transient
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import SQLModel

Duplicates = dict[int, SQLModel]

DYNAMIC_LOADERS = ("dynamic", "write_only")
"""Loader strategies whose relationships run a query at each access, and keep no objects."""


def reachable_objects(entity: SQLModel) -> list[SQLModel]:
    """Returns the entity and every loaded object that is stored with it, one object for each row.

    If several copies of a row are reachable, the first copy replaces the others in the loaded relationships: a
    session refuses two copies.
    """
    objects = list(_cascaded_objects(entity))
    copies = _find_duplicates(objects)
    if not copies:
        return objects
    for member in objects:
        _replace_duplicates(member, copies)
    return list(_cascaded_objects(entity))


def evict_duplicates(session: Session, objects: Iterable[SQLModel]) -> None:
    """Flushes and then expunges other copies of these objects from the session."""
    for member in objects:
        key = state_of(member).key
        duplicate = session.identity_map.get(key) if key is not None else None
        if duplicate is not None and duplicate is not member:
            session.flush()
            session.expunge(duplicate)


def make_deleted_transient(objects: Iterable[SQLModel]) -> None:
    """Makes objects that were deleted through their session transient, so that a save inserts them."""
    for member in objects:
        if state_of(member).was_deleted:
            make_transient(member)


def outdated_references(objects: Iterable[SQLModel]) -> list[tuple[SQLModel, list[str]]]:
    """Returns the loaded many-to-one relationships whose foreign key was changed and whose object was not."""
    candidates = (
        (member, [name for name in loaded_relationships(state_of(member)) if _is_outdated(member, name)])
        for member in objects
    )
    return [(member, names) for member, names in candidates if names]


def state_of(entity: object) -> InstanceState[Any]:
    """Returns SQLAlchemy's state of an instance."""
    state: InstanceState[Any] = inspect(entity)
    return state


def known_id(entity: SQLModel) -> object:
    """Returns the id of an instance, or None; works without a table, and never loads an expired id."""
    loaded_id: object = entity.__dict__.get("id")
    state: InstanceState[Any] | None = inspect(entity, raiseerr=False)
    return state.identity[0] if loaded_id is None and state is not None and state.identity else loaded_id


def loaded_relationships(state: InstanceState[Any]) -> list[str]:
    """Returns the names of the relationships that were loaded or assigned."""
    present = (relation for relation in state.mapper.relationships if relation.key in state.dict)
    return [relation.key for relation in present if relation.lazy not in DYNAMIC_LOADERS]


def related_objects(value: Any) -> list[Any]:
    """Returns the objects of a loaded relationship: of a collection, of a single reference, or none."""
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
    for member, *_ in related:
        if member is not entity:
            yield member


def _find_duplicates(objects: Iterable[SQLModel]) -> Duplicates:
    """Returns the further copies of rows: `id()` of the copy → the first copy, which replaces it."""
    first_copies: dict[Any, SQLModel] = {}
    duplicates: Duplicates = {}
    for member in objects:
        key = state_of(member).key
        first = first_copies.setdefault(key, member) if key is not None else member
        if first is not member:
            duplicates[id(member)] = first
    return duplicates


def _replace_duplicates(entity: SQLModel, copies: Duplicates) -> None:
    state = state_of(entity)
    for name in loaded_relationships(state):
        value = state.dict[name]
        if not any(id(member) in copies for member in related_objects(value)):
            continue
        if isinstance(value, list):
            for index, member in enumerate(value):
                list.__setitem__(value, index, copies.get(id(member), member))
        else:
            unified = [copies.get(id(member), member) for member in related_objects(value)]
            set_committed_value(entity, name, unified[0] if isinstance(value, SQLModel) else unified)
