"""Upserts: a new object whose row exists already becomes an object that updates the row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.attributes import flag_modified, set_attribute, set_committed_value
from sqlmodel import SQLModel

from nitro.infrastructure.repository.graph import loaded_relationships, related_objects, state_of
from nitro.infrastructure.repository.query import mapper_of


def promote_existing(session: Session, objects: Sequence[SQLModel]) -> None:
    """Turns new objects whose row exists already into stored objects with every assigned value changed."""
    candidates_by_class: dict[type[SQLModel], list[SQLModel]] = defaultdict(list)
    for member in objects:
        if state_of(member).transient and _may_exist(member):
            candidates_by_class[type(member)].append(member)
    with session.no_autoflush:
        for entity_class, candidates in candidates_by_class.items():
            stored_keys = _stored_keys(session, entity_class, candidates)
            for candidate in candidates:
                if _primary_key(candidate) in stored_keys:
                    _promote(candidate)


def _stored_keys(
    session: Session, entity_class: type[SQLModel], candidates: Sequence[SQLModel]
) -> set[tuple[object, ...]]:
    columns = mapper_of(entity_class, "save").primary_key
    conditions = (
        and_(*(column == part for column, part in zip(columns, _primary_key(candidate), strict=True)))
        for candidate in candidates
    )
    return {tuple(row) for row in session.execute(select(*columns).where(or_(*conditions)))}


def _primary_key(entity: SQLModel) -> tuple[object, ...]:
    return tuple(state_of(entity).mapper.primary_key_from_instance(entity))


def _primary_key_names(entity: SQLModel) -> list[str]:
    mapper = state_of(entity).mapper
    return [mapper.get_property_by_column(column).key for column in mapper.primary_key]


def _may_exist(entity: SQLModel) -> bool:
    """Whether the key was assigned by the user; a generated key has no row yet."""
    return None not in _primary_key(entity) and not entity.model_fields_set.isdisjoint(_primary_key_names(entity))


def mark_as_stored(entity: SQLModel) -> None:
    """Marks the key as assigned, so that a later save looks for the row, also after a rollback of its deletion."""
    entity.model_fields_set.update(_primary_key_names(entity))


def _promote(entity: SQLModel) -> None:
    state = state_of(entity)
    for name, attribute in state.mapper.column_attrs.items():
        if state.dict.get(name, entity) is None and _is_database_generated(attribute.columns[0]):
            del state.dict[name]
    related = {name: state.dict[name] for name in loaded_relationships(state)}
    make_transient_to_detached(entity)
    for name in set(state.mapper.column_attrs.keys()) - set(_primary_key_names(entity)):
        if name in state.dict:
            flag_modified(entity, name)
    for name, value in related.items():
        _reassign_related(entity, name, value)


def _is_database_generated(column: object) -> bool:
    return any(getattr(column, name, None) for name in ("server_default", "onupdate", "server_onupdate"))


def _reassign_related(entity: SQLModel, name: str, value: object) -> None:
    """Assigns a relationship again, so that SQLAlchemy counts its objects as added and sets their foreign keys."""
    is_collection = state_of(entity).mapper.relationships[name].uselist
    members = related_objects(value) if is_collection else value
    set_committed_value(entity, name, [] if is_collection else None)
    set_attribute(entity, name, members)
