"""How entities are found: each function reads in the open transaction, or in a short session of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from nitro.infrastructure.database import ensure_tables, reading
from nitro.infrastructure.repository.query import (
    Condition,
    E,
    Ordering,
    by_fields,
    conditions,
    containing,
    mapper_of,
    ordering,
)


def get(entity: type[E], key: object) -> E | None:
    """The entity with this primary key, or None."""
    with _asking(entity, "get") as session:
        return None if key is None else session.get(entity, key)


def exists(entity: type[E], key: object) -> bool:
    """Whether there is a row with this primary key; it is not loaded."""
    with _asking(entity, "exists") as session:
        parts = key if isinstance(key, tuple) else (key,)
        columns = mapper_of(entity, "exists").primary_key
        row = select(1).where(*(column == part for column, part in zip(columns, parts, strict=True)))
        return session.scalar(row) is not None


def every(entity: type[E]) -> list[E]:
    """All entities of the class."""
    with _asking(entity, "all") as session:
        return _select(session, entity, ())


def count(entity: type[E], *given: Condition) -> int:
    """How many rows meet all the conditions."""
    with _asking(entity, "count") as session:
        counted = select(func.count()).select_from(entity).where(*conditions(entity, "count", given))
        return session.scalar(counted) or 0


def where(
    entity: type[E],
    /,
    *given: Condition,
    order_by: Ordering = None,
    limit: int | None = None,
    offset: int | None = None,
    **fields: object,
) -> list[E]:
    """The entities that meet all the conditions and whose fields equal the values."""
    with _asking(entity, "where") as session:
        meant = (*conditions(entity, "where", given), *by_fields(entity, fields))
        return _select(session, entity, meant, order_by, limit, offset)


def find_by(entity: type[E], /, **fields: object) -> E | None:
    """The first entity whose fields equal the values, or None."""
    with _asking(entity, "find_by") as session:
        found = _select(session, entity, by_fields(entity, fields), limit=1)
        return found[0] if found else None


def search(
    entity: type[E],
    text: str,
    *,
    fields: Iterable[str] | None = None,
    order_by: Ordering = None,
    limit: int | None = None,
    offset: int | None = None,
) -> list[E]:
    """The entities that contain the text in one of the fields, whatever the case."""
    with _asking(entity, "search") as session:
        return _select(session, entity, (containing(entity, text, fields),), order_by, limit, offset)


@contextmanager
def _asking(entity: type[E], action: str) -> Iterator[Session]:
    mapper_of(entity, action)
    with reading() as session:
        ensure_tables(session)
        yield session


def _select(
    session: Session,
    entity: type[E],
    meant: Sequence[ColumnElement[bool]],
    order_by: Ordering = None,
    limit: int | None = None,
    offset: int | None = None,
) -> list[E]:
    found = select(entity).where(*meant).order_by(*ordering(entity, order_by)).limit(limit).offset(offset)
    return list(session.scalars(found).unique())
