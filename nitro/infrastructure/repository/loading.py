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
    ORMExecuteState,
    Query,
    RelationshipDirection,
    RelationshipProperty,
    Session,
    make_transient_to_detached,
    object_session,
    with_parent,
)
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import SQLModel

from nitro.errors import EntityVanished, NotLoaded, NotSaved, TransactionError
from nitro.infrastructure.database import ensure_tables, must_await, read_session, write_session
from nitro.infrastructure.repository.graph import DYNAMIC_LOADERS, loaded_relationships, state_of
from nitro.infrastructure.repository.query import mapper_of

M = TypeVar("M", bound=SQLModel)

UNREAD_KEY = "nitro_unread"
NON_LAZY_LOADERS = {*DYNAMIC_LOADERS, "noload", "raise", "raise_on_sql"}


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
    _load_columns(entity, mapper.column_attrs.keys(), "refresh()")
    state = state_of(entity)
    if state.key is None:
        make_transient_to_detached(entity)
    for name in loaded_relationships(state):
        _load_related(entity, mapper.relationships[name])


def load_expired(entity: object, names: Iterable[str]) -> None:
    """Read expired columns now: in the session that the entity is attached to, else by a read of its own.

    Raises:
        EntityVanished: the row is gone.
        TransactionError: its `AsyncSession` would have to be awaited.
    """
    session = object_session(entity)
    if session is None:
        _load_columns(entity, names, "reading it")
    elif must_await(session):
        raise TransactionError("its AsyncSession must be awaited: `await session.refresh(...)`")
    else:
        for name in names:
            getattr(entity, name)


def mark_unread(entity: object, names: frozenset[str]) -> None:
    """Let columns that did not arrive stay unread while it is detached: the row may have changed since the emit."""
    state_of(entity).info[UNREAD_KEY] = names


def unread_columns(state: InstanceState[Any]) -> frozenset[str]:
    """The columns of a detached instance that did not arrive."""
    names: frozenset[str] = state.info.get(UNREAD_KEY, frozenset())
    return names if state.session is None else frozenset()


def enable_detached_queries(mapper: Mapper[Any]) -> None:
    """Make `lazy="dynamic"` relationships read on detached instances, where SQLAlchemy says that they are empty."""
    for relation in mapper.relationships:
        if relation.lazy == "dynamic":
            impl = getattr(mapper.class_, relation.key).impl
            if not hasattr(impl.query_class, "is_detached_query"):
                impl.query_class = _detached_query_class(impl.query_class)


def enable_detached_loading(root: type[SQLModel]) -> None:
    """Make relationships and expired columns of detached instances readable, for every table class under `root`."""

    def equip() -> None:
        for entity in all_subclasses(root):
            mapper = inspect(entity, raiseerr=False)
            if mapper is not None:
                _enable_for_mapper(mapper)

    event.listen(Mapper, "after_configured", equip)


def all_subclasses(root: type[M]) -> Iterator[type[M]]:
    """All classes that are derived from it."""
    for entity in root.__subclasses__():
        yield entity
        yield from all_subclasses(entity)


def _enable_for_mapper(mapper: Mapper[Any]) -> None:
    entity = mapper.class_
    lazy = [relation.key for relation in mapper.relationships if relation.lazy not in NON_LAZY_LOADERS]
    deferred = [column.key for column in mapper.column_attrs if column.deferred and not column.raiseload]
    for name in (*lazy, *deferred):
        attribute = entity.__dict__.get(name)
        if isinstance(attribute, InstrumentedAttribute):
            attribute.__class__ = _DetachedAttribute
    enable_detached_queries(mapper)
    manager = mapper.class_manager
    if not isinstance(manager.expired_attribute_loader, _DetachedColumnLoader):
        manager.expired_attribute_loader = _DetachedColumnLoader(manager.expired_attribute_loader)


class _DetachedAttribute(InstrumentedAttribute[Any]):
    """A relationship or deferred column that loads on detached instances, too; on the class it is what it was."""

    __slots__ = ()
    inherit_cache = True

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is not None and self.key not in instance.__dict__:
            state = state_of(instance)
            if state.key is not None and state.session is None:
                _load(instance, state, self.key)
        return super().__get__(instance, owner)


class _DetachedColumnLoader:
    """SQLAlchemy's loader of expired columns, which also knows what to do without a session."""

    __slots__ = ("_attached_loader",)

    def __init__(self, attached: Callable[..., None]) -> None:
        self._attached_loader = attached

    def __call__(self, state: InstanceState[Any], toload: set[str], passive: Any) -> None:
        entity = state.obj()
        if state.key is None or state.session is not None or entity is None:
            self._attached_loader(state, toload, passive)
        else:
            _load_columns(
                entity, _check_loadable(state, toload.intersection(state.mapper.column_attrs.keys())), "reading it"
            )


def _detached_query_class(query: Any) -> Any:
    """The query class of a dynamic relationship, whose questions are reads of their own on a detached instance."""

    class DetachedQuery(query):  # type: ignore[misc]  # which class it is depends on the relationship
        is_detached_query = True

        @property
        def session(self) -> Session | None:
            state = state_of(self.instance)
            if state.key is None or state.session is not None:
                found: Session | None = super().session
                return found
            changes = state.attrs[self.attr.key].history
            if changes.added or changes.deleted:
                raise NotSaved(type(self.instance).__name__, self.attr.key)
            return _session_per_statement()

        @session.setter
        def session(self, session: Session) -> None:
            self.sess = session

        def _generate(self, sess: Session | None = None) -> Query[Any]:
            found: Query[Any] = super()._generate(sess or self.session)
            return found

    return DetachedQuery


def _session_per_statement() -> Session:
    """A session without a connection: `read_session` or `write_session` runs each statement."""
    session = Session(autoflush=False)

    @event.listens_for(session, "do_orm_execute")
    def run(asked: ORMExecuteState) -> Any:
        with read_session() if asked.is_select else write_session() as own:
            ensure_tables(own)
            result = own.execute(asked.statement, asked.parameters, execution_options=asked.execution_options)
            return result.freeze()() if asked.is_select else result

    return session


def _load(entity: object, state: InstanceState[Any], name: str) -> None:
    if name in state.mapper.relationships:
        _load_related(entity, state.mapper.relationships[name])
    else:
        _load_columns(entity, _check_loadable(state, {name}), "reading it")


def _check_loadable(state: InstanceState[Any], names: set[str]) -> set[str]:
    """The same names, if any of them has expired since it arrived."""
    if names <= unread_columns(state):
        raise NotLoaded(state.class_.__name__, sorted(names))
    return names


def _load_columns(entity: object, names: Iterable[str], action: str) -> None:
    state = state_of(entity)
    mapper = state.mapper
    key = state.identity or mapper.primary_key_from_instance(entity)
    wanted = list(names)
    row = select(*(getattr(type(entity), name) for name in wanted)).where(
        *(column == part for column, part in zip(mapper.primary_key, key, strict=True))
    )
    with read_session() as session:
        ensure_tables(session)
        found = session.execute(row).one_or_none()
    if found is None:
        raise EntityVanished(type(entity).__name__, action)
    for name, value in zip(wanted, found, strict=True):
        set_committed_value(entity, name, value)


def _load_related(entity: Any, relation: RelationshipProperty[Any]) -> None:
    """Load a relationship without attaching the entity, which other threads may be reading."""
    found = [] if _is_empty_reference(entity, relation) else _query_related(entity, relation)
    reverse = relation.mapper.relationships.get(relation.back_populates) if relation.back_populates else None
    if reverse is not None and not reverse.uselist:
        for other in found:
            if reverse.key not in other.__dict__:
                set_committed_value(other, reverse.key, entity)
    set_committed_value(entity, relation.key, found if relation.uselist else next(iter(found), None))


def _query_related(entity: Any, relation: RelationshipProperty[Any]) -> list[Any]:
    target: type[Any] = relation.mapper.class_
    related = select(target).where(with_parent(entity, getattr(type(entity), relation.key)))
    with read_session() as session:
        ensure_tables(session)
        return list(session.scalars(related.order_by(*(relation.order_by or ()))).unique())


def _is_empty_reference(entity: Any, relation: RelationshipProperty[Any]) -> bool:
    """Whether a reference to one object is empty: no query is needed then."""
    if relation.direction is not RelationshipDirection.MANYTOONE:
        return False
    mapper = state_of(entity).mapper
    return any(getattr(entity, mapper.get_property_by_column(column).key) is None for column in relation.local_columns)
