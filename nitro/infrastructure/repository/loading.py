"""Loading of columns and relationships at their first access, also on detached instances, where SQLAlchemy raises."""

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
    """Replaces all values of the entity, unsaved changes included, by the values of its row.

    Raises:
        EntityVanished: the row does not exist any more.
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
    """Reads expired columns, in the session that the entity is attached to, else in a session of its own.

    Raises:
        EntityVanished: the row does not exist any more.
        TransactionError: the entity is attached to an `AsyncSession`, which must be awaited.
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
    """Marks columns that are not in the payload: a read on the detached instance raises instead of a later value."""
    state_of(entity).info[UNREAD_KEY] = names


def unread_columns(state: InstanceState[Any]) -> frozenset[str]:
    """Returns the columns of a detached instance that were not in the payload."""
    names: frozenset[str] = state.info.get(UNREAD_KEY, frozenset())
    return names if state.session is None else frozenset()


def enable_detached_queries(mapper: Mapper[Any]) -> None:
    """Makes `lazy="dynamic"` relationships run queries on detached instances; in SQLAlchemy they would be empty."""
    for relation in mapper.relationships:
        if relation.lazy == "dynamic":
            impl = getattr(mapper.class_, relation.key).impl
            if not hasattr(impl.query_class, "is_detached_query"):
                impl.query_class = _detached_query_class(impl.query_class)


def enable_detached_loading(root: type[SQLModel]) -> None:
    """Makes relationships and expired columns of detached instances readable, for every table class under `root`."""

    def enable_subclasses() -> None:
        for entity in all_subclasses(root):
            mapper = inspect(entity, raiseerr=False)
            if mapper is not None:
                _enable_for_mapper(mapper)

    event.listen(Mapper, "after_configured", enable_subclasses)


def all_subclasses(root: type[M]) -> Iterator[type[M]]:
    """Yields all classes that are derived from `root`."""
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
    """An attribute for a relationship or a deferred column that also loads on detached instances."""

    __slots__ = ()
    inherit_cache = True

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is not None and self.key not in instance.__dict__:
            state = state_of(instance)
            if state.key is not None and state.session is None:
                _load(instance, state, self.key)
        return super().__get__(instance, owner)


class _DetachedColumnLoader:
    """A loader of expired columns that wraps SQLAlchemy's, and reads those of detached instances itself."""

    __slots__ = ("_attached_loader",)

    def __init__(self, attached_loader: Callable[..., None]) -> None:
        self._attached_loader = attached_loader

    def __call__(self, state: InstanceState[Any], toload: set[str], passive: Any) -> None:
        entity = state.obj()
        if state.key is None or state.session is not None or entity is None:
            self._attached_loader(state, toload, passive)
        else:
            _load_columns(
                entity, _check_loadable(state, toload.intersection(state.mapper.column_attrs.keys())), "reading it"
            )


def _detached_query_class(query: Any) -> Any:
    """Returns a query class for a dynamic relationship that runs each statement in a session of its own if detached."""

    class DetachedQuery(query):  # type: ignore[misc]  # which class it is depends on the relationship
        is_detached_query = True

        @property
        def session(self) -> Session | None:
            state = state_of(self.instance)
            if state.key is None or state.session is not None:
                attached: Session | None = super().session
                return attached
            changes = state.attrs[self.attr.key].history
            if changes.added or changes.deleted:
                raise NotSaved(type(self.instance).__name__, self.attr.key)
            return _session_per_statement()

        @session.setter
        def session(self, session: Session) -> None:
            self.sess = session

        def _generate(self, sess: Session | None = None) -> Query[Any]:
            query: Query[Any] = super()._generate(sess or self.session)
            return query

    return DetachedQuery


def _session_per_statement() -> Session:
    """Returns a session without a connection, which runs each statement in `read_session` or `write_session`."""
    session = Session(autoflush=False)

    @event.listens_for(session, "do_orm_execute")
    def run(state: ORMExecuteState) -> Any:
        with read_session() if state.is_select else write_session() as own_session:
            ensure_tables(own_session)
            result = own_session.execute(state.statement, state.parameters, execution_options=state.execution_options)
            return result.freeze()() if state.is_select else result

    return session


def _load(entity: object, state: InstanceState[Any], name: str) -> None:
    if name in state.mapper.relationships:
        _load_related(entity, state.mapper.relationships[name])
    else:
        _load_columns(entity, _check_loadable(state, {name}), "reading it")


def _check_loadable(state: InstanceState[Any], names: set[str]) -> set[str]:
    """Returns the names, and raises NotLoaded if none of these columns was in the payload."""
    if names <= unread_columns(state):
        raise NotLoaded(state.class_.__name__, sorted(names))
    return names


def _load_columns(entity: object, names: Iterable[str], action: str) -> None:
    state = state_of(entity)
    mapper = state.mapper
    key = state.identity or mapper.primary_key_from_instance(entity)
    columns = list(names)
    query = select(*(getattr(type(entity), name) for name in columns)).where(
        *(column == part for column, part in zip(mapper.primary_key, key, strict=True))
    )
    with read_session() as session:
        ensure_tables(session)
        row = session.execute(query).one_or_none()
    if row is None:
        raise EntityVanished(type(entity).__name__, action)
    for name, value in zip(columns, row, strict=True):
        set_committed_value(entity, name, value)


def _load_related(entity: Any, relation: RelationshipProperty[Any]) -> None:
    """Loads a relationship without a session for the entity itself, which other threads may read."""
    related = [] if _is_empty_reference(entity, relation) else _query_related(entity, relation)
    reverse = relation.mapper.relationships.get(relation.back_populates) if relation.back_populates else None
    if reverse is not None and not reverse.uselist:
        for member in related:
            if reverse.key not in member.__dict__:
                set_committed_value(member, reverse.key, entity)
    set_committed_value(entity, relation.key, related if relation.uselist else next(iter(related), None))


def _query_related(entity: Any, relation: RelationshipProperty[Any]) -> list[Any]:
    target: type[Any] = relation.mapper.class_
    related = select(target).where(with_parent(entity, getattr(type(entity), relation.key)))
    with read_session() as session:
        ensure_tables(session)
        return list(session.scalars(related.order_by(*(relation.order_by or ()))).unique())


def _is_empty_reference(entity: Any, relation: RelationshipProperty[Any]) -> bool:
    """Whether a many-to-one relationship has no foreign key, so that it needs no query."""
    if relation.direction is not RelationshipDirection.MANYTOONE:
        return False
    mapper = state_of(entity).mapper
    return any(getattr(entity, mapper.get_property_by_column(column).key) is None for column in relation.local_columns)
