"""Insert or update: a new object whose row exists already becomes one that updates it."""

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
    """Turn new objects whose row exists already into stored ones that differ from it in every given value."""
    unknown: dict[type[SQLModel], list[SQLModel]] = defaultdict(list)
    for found in objects:
        if state_of(found).transient and _may_exist(found):
            unknown[type(found)].append(found)
    with session.no_autoflush:
        for kind, candidates in unknown.items():
            stored = _stored_keys(session, kind, candidates)
            for found in candidates:
                if _primary_key(found) in stored:
                    _promote(found)


def _stored_keys(session: Session, kind: type[SQLModel], candidates: Sequence[SQLModel]) -> set[tuple[object, ...]]:
    columns = mapper_of(kind, "save").primary_key
    wanted = (
        and_(*(column == part for column, part in zip(columns, _primary_key(one), strict=True))) for one in candidates
    )
    return {tuple(row) for row in session.execute(select(*columns).where(or_(*wanted)))}


def _primary_key(entity: SQLModel) -> tuple[object, ...]:
    return tuple(state_of(entity).mapper.primary_key_from_instance(entity))


def _primary_key_names(entity: SQLModel) -> list[str]:
    mapper = state_of(entity).mapper
    return [mapper.get_property_by_column(column).key for column in mapper.primary_key]


def _may_exist(entity: SQLModel) -> bool:
    """Whether the key was given; a generated one is new."""
    return None not in _primary_key(entity) and not entity.model_fields_set.isdisjoint(_primary_key_names(entity))


def mark_as_stored(entity: SQLModel) -> None:
    """Count the key as given from now on, so that a row which a rollback brings back is found."""
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
    """Make related objects count as added, so that they get their foreign keys."""
    many = state_of(entity).mapper.relationships[name].uselist
    given = related_objects(value) if many else value
    set_committed_value(entity, name, [] if many else None)
    set_attribute(entity, name, given)
