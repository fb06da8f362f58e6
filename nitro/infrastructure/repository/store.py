"""Storage of entities: each function writes in the open transaction, or in a transaction of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import delete as delete_rows
from sqlalchemy.orm import Session, make_transient, object_session
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import SQLModel

from nitro.errors import EntityVanished, InvalidEntity, NotACondition
from nitro.infrastructure.database import (
    current_transaction,
    ensure_tables,
    is_block_session,
    must_await,
    write_session,
)
from nitro.infrastructure.repository.graph import (
    evict_duplicates,
    make_deleted_transient,
    outdated_references,
    reachable_objects,
    state_of,
)
from nitro.infrastructure.repository.query import Condition, E, check_conditions, mapper_of
from nitro.infrastructure.repository.snapshot import restore_on_failure
from nitro.infrastructure.repository.upsert import mark_as_stored, promote_existing
from nitro.infrastructure.repository.validation import validate


def save(entity: SQLModel) -> None:
    """Inserts the entity or updates its row, together with its loaded related objects.

    Raises:
        InvalidEntity: a value is not allowed; nothing was written.
        EntityVanished: the row to update does not exist any more.
    """
    mapper_of(type(entity), "save")
    objects = reachable_objects(entity)
    make_deleted_transient(objects)
    current = current_transaction()
    session = _user_session_of(objects) or (current.session if current is not None else None)
    if session is not None and must_await(session):
        validate(objects)
        session.add(entity)
    elif session is not None and (current is None or session is not current.session):
        _save_in_user_session(session, entity, objects)
    else:
        with write_session() as own_session:
            _save(own_session, entity, objects)


def delete(entity: SQLModel) -> None:
    """Deletes the row of the entity, if it exists; `save()` inserts it again."""
    mapper_of(type(entity), "delete")
    user_session = _user_session_of([entity])
    if user_session is not None:
        _delete_in_user_session(user_session, entity)
        return
    with write_session() as session:
        ensure_tables(session)
        if state_of(entity).pending:
            session.flush()
        promote_existing(session, [entity])
        if state_of(entity).key is not None and not state_of(entity).was_deleted:
            related = reachable_objects(entity)
            with restore_on_failure(session, related):
                evict_duplicates(session, related)
                session.add(entity)
                _expunge_unsaved(session, [member for member in related if state_of(member).pending])
                session.delete(entity)
                session.flush()
            make_transient(entity)
            mark_as_stored(entity)


def delete_where(entity: type[E], *conditions: Condition) -> int:
    """Deletes the rows that meet all the conditions, and returns their number.

    Raises:
        NotACondition: no condition was given.
    """
    mapper_of(entity, "delete_where")
    if not conditions:
        raise NotACondition(entity.__name__, "delete_where", "no condition")
    with write_session() as session:
        ensure_tables(session)
        result = session.execute(delete_rows(entity).where(*check_conditions(entity, "delete_where", conditions)))
        return int(result.rowcount)  # type: ignore[attr-defined]  # typed as Result; a DELETE gives a CursorResult


def _user_session_of(objects: Iterable[SQLModel]) -> Session | None:
    """Returns the session of the user that one of the objects is attached to, or None."""
    for member in objects:
        session = object_session(member)
        if session is not None and not is_block_session(session):
            return session
    return None


def _save_in_user_session(session: Session, entity: SQLModel, objects: Sequence[SQLModel]) -> None:
    validate(objects)
    session.add(entity)
    _flush(session, entity, "save()")


def _delete_in_user_session(session: Session, entity: SQLModel) -> None:
    if state_of(entity).pending:
        session.expunge(entity)
        return
    session.delete(entity)
    session.flush()


def _save(session: Session, entity: SQLModel, objects: Sequence[SQLModel]) -> None:
    ensure_tables(session)
    try:
        validate(objects)
    except InvalidEntity:
        _expunge_unsaved(session, objects)
        raise
    promote_existing(session, objects)
    with restore_on_failure(session, objects):
        evict_duplicates(session, objects)
        session.add(entity)
        outdated = outdated_references(objects)
        _flush(session, entity, "save()")
    for member, names in outdated:
        session.expire(member, names)
    for member in objects:
        mark_as_stored(member)
        _read_generated_columns(session, member)


def _flush(session: Session, entity: SQLModel, action: str) -> None:
    try:
        session.flush()
    except StaleDataError as error:
        raise EntityVanished(type(entity).__name__, action) from error


def _expunge_unsaved(session: Session, objects: Iterable[SQLModel]) -> None:
    """Expunges new and changed objects, which the commit would write otherwise."""
    for member in objects:
        if member in session and (member in session.new or session.is_modified(member)):
            session.expunge(member)


def _read_generated_columns(session: Session, entity: SQLModel) -> None:
    """Reads the columns that the database has generated, such as server defaults."""
    state = state_of(entity)
    unread = [key for key, column in state.mapper.column_attrs.items() if key in state.unloaded and not column.deferred]
    if unread and entity in session:
        session.refresh(entity, unread)
