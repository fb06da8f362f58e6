"""What is not loaded yet is read when it is asked for, also where SQLAlchemy would refuse: on detached instances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from sqlalchemy import event, inspect, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    InstanceState,
    InstrumentedAttribute,
    Mapper,
    RelationshipDirection,
    RelationshipProperty,
    make_transient_to_detached,
    object_session,
    with_parent,
)
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import SQLModel

from nitro.errors import EntityVanished
from nitro.infrastructure.database import ensure_tables, reading
from nitro.infrastructure.repository.graph import loaded_relationships, state_of
from nitro.infrastructure.repository.query import mapper_of

M = TypeVar("M", bound=SQLModel)

NEVER_LAZY = {"dynamic", "write_only", "noload", "raise", "raise_on_sql"}


def refresh(entity: SQLModel) -> None:
    """Replace the values of the entity by those of its row, unsaved changes included.

    Raises:
        EntityVanished: the row is gone.
    """
    mapper = mapper_of(type(entity), "refresh")
    session = object_session(entity)
    if session is not None:
        try:
            session.refresh(entity)
        except InvalidRequestError as error:
            raise EntityVanished(type(entity).__name__, "refresh()") from error
        return
    _read_columns(entity, mapper.column_attrs.keys(), "refresh()")
    state = state_of(entity)
    if state.key is None:
        make_transient_to_detached(entity)
    for name in loaded_relationships(state):
        _read_related(entity, mapper.relationships[name])


def keep_readable(root: type[SQLModel]) -> None:
    """Make relationships and expired columns of detached instances readable, for every table class under `root`."""

    def equip() -> None:
        for entity in below(root):
            mapper = inspect(entity, raiseerr=False)
            if mapper is not None:
                _equip(mapper)

    event.listen(Mapper, "after_configured", equip)


def below(root: type[M]) -> Iterator[type[M]]:
    """All classes that are derived from it."""
    for entity in root.__subclasses__():
        yield entity
        yield from below(entity)


def _equip(mapper: Mapper[Any]) -> None:
    entity = mapper.class_
    for relation in mapper.relationships:
        attribute = entity.__dict__.get(relation.key)
        if isinstance(attribute, InstrumentedAttribute) and relation.lazy not in NEVER_LAZY:
            attribute.__class__ = _Readable
    manager = mapper.class_manager
    if not isinstance(manager.expired_attribute_loader, _DetachedColumns):
        manager.expired_attribute_loader = _DetachedColumns(manager.expired_attribute_loader)


class _Readable(InstrumentedAttribute[Any]):
    """A relationship that loads on detached instances, too; on the class it is what it was."""

    __slots__ = ()
    inherit_cache = True

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is not None and self.key not in instance.__dict__:
            state = state_of(instance)
            if state.key is not None and state.session is None:
                _read_related(instance, state.mapper.relationships[self.key])
        return super().__get__(instance, owner)


class _DetachedColumns:
    """SQLAlchemy's loader of expired columns, which also knows what to do without a session."""

    __slots__ = ("_attached",)

    def __init__(self, attached: Callable[..., None]) -> None:
        self._attached = attached

    def __call__(self, state: InstanceState[Any], toload: set[str], passive: Any) -> None:
        entity = state.obj()
        if state.key is None or state.session is not None or entity is None:
            self._attached(state, toload, passive)
        else:
            _read_columns(entity, toload.intersection(state.mapper.column_attrs.keys()), "reading it")


def _read_columns(entity: SQLModel, names: Iterable[str], action: str) -> None:
    state = state_of(entity)
    mapper = state.mapper
    key = state.identity or mapper.primary_key_from_instance(entity)
    wanted = list(names)
    row = select(*(getattr(type(entity), name) for name in wanted)).where(
        *(column == part for column, part in zip(mapper.primary_key, key, strict=True))
    )
    with reading() as session:
        ensure_tables(session)
        found = session.execute(row).one_or_none()
    if found is None:
        raise EntityVanished(type(entity).__name__, action)
    for name, value in zip(wanted, found, strict=True):
        set_committed_value(entity, name, value)


def _read_related(entity: SQLModel, relation: RelationshipProperty[Any]) -> None:
    """Load a relationship without attaching the entity, which other threads may be reading."""
    found = [] if _points_nowhere(entity, relation) else _query_related(entity, relation)
    reverse = relation.mapper.relationships.get(relation.back_populates) if relation.back_populates else None
    if reverse is not None and not reverse.uselist:
        for other in found:
            if reverse.key not in other.__dict__:
                set_committed_value(other, reverse.key, entity)
    set_committed_value(entity, relation.key, found if relation.uselist else next(iter(found), None))


def _query_related(entity: SQLModel, relation: RelationshipProperty[Any]) -> list[SQLModel]:
    target: type[SQLModel] = relation.mapper.class_
    related = select(target).where(with_parent(entity, getattr(type(entity), relation.key)))
    with reading() as session:
        ensure_tables(session)
        return list(session.scalars(related.order_by(*(relation.order_by or ()))).unique())


def _points_nowhere(entity: SQLModel, relation: RelationshipProperty[Any]) -> bool:
    """Whether a reference to one object is empty: no query is needed then."""
    if relation.direction is not RelationshipDirection.MANYTOONE:
        return False
    mapper = state_of(entity).mapper
    return any(getattr(entity, mapper.get_property_by_column(column).key) is None for column in relation.local_columns)
