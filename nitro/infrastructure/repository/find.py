"""Queries for entities: each function reads in the open transaction, or in a short session of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from nitro.infrastructure.database import ensure_tables, read_session
from nitro.infrastructure.repository.query import (
    Condition,
    E,
    Ordering,
    check_conditions,
    field_conditions,
    mapper_of,
    order_expressions,
    text_condition,
)


def get(entity: type[E], key: object) -> E | None:
    """Returns the entity with this primary key, or None."""
    with _reading_session(entity, "get") as session:
        return None if key is None else session.get(entity, key)


def exists(entity: type[E], key: object) -> bool:
    """Whether a row with this primary key exists; the row is not loaded."""
    with _reading_session(entity, "exists") as session:
        parts = key if isinstance(key, tuple) else (key,)
        columns = mapper_of(entity, "exists").primary_key
        row = select(1).where(*(column == part for column, part in zip(columns, parts, strict=True)))
        return session.scalar(row) is not None


def all_entities(entity: type[E]) -> list[E]:
    """Returns all entities of the class."""
    with _reading_session(entity, "all") as session:
        return _select(session, entity, ())


def count(entity: type[E], *conditions: Condition) -> int:
    """Returns the number of rows that meet all the conditions."""
    with _reading_session(entity, "count") as session:
        statement = select(func.count()).select_from(entity).where(*check_conditions(entity, "count", conditions))
        return session.scalar(statement) or 0


def where(
    entity: type[E],
    /,
    *conditions: Condition,
    order_by: Ordering = None,
    limit: int | None = None,
    offset: int | None = None,
    **fields: object,
) -> list[E]:
    """Returns the entities that meet all the conditions and whose fields equal the values."""
    with _reading_session(entity, "where") as session:
        criteria = (*check_conditions(entity, "where", conditions), *field_conditions(entity, fields))
        return _select(session, entity, criteria, order_by, limit, offset)


def find_by(entity: type[E], /, **fields: object) -> E | None:
    """Returns the first entity whose fields equal the values, or None."""
    with _reading_session(entity, "find_by") as session:
        entities = _select(session, entity, field_conditions(entity, fields), limit=1)
        return entities[0] if entities else None


def search(
    entity: type[E],
    text: str,
    *,
    fields: Iterable[str] | None = None,
    order_by: Ordering = None,
    limit: int | None = None,
    offset: int | None = None,
) -> list[E]:
    """Returns the entities that contain the text in one of the fields; upper and lower case are equal."""
    with _reading_session(entity, "search") as session:
        return _select(session, entity, (text_condition(entity, text, fields),), order_by, limit, offset)


@contextmanager
def _reading_session(entity: type[E], action: str) -> Iterator[Session]:
    mapper_of(entity, action)
    with read_session() as session:
        ensure_tables(session)
        yield session


def _select(
    session: Session,
    entity: type[E],
    criteria: Sequence[ColumnElement[bool]],
    order_by: Ordering = None,
    limit: int | None = None,
    offset: int | None = None,
) -> list[E]:
    query = select(entity).where(*criteria).order_by(*order_expressions(entity, order_by)).limit(limit).offset(offset)
    return list(session.scalars(query).unique())
