"""What objects held before a flush, so that one that fails costs the caller nothing but the flush."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified, set_attribute, set_committed_value
from sqlmodel import SQLModel

from nitro.infrastructure.repository.graph import loaded_relationships, related_objects, state_of


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What one object that has a row held; a rollback would make it forget.

    Attributes:
        columns: the loaded ones.
        changed: names of columns that differ from the row.
        related: by relationship, the members before and after the changes.
    """

    entity: SQLModel
    columns: dict[str, Any]
    changed: frozenset[str]
    related: dict[str, tuple[Any, Any]]


@contextmanager
def restore_on_failure(session: Session, objects: Sequence[SQLModel]) -> Iterator[None]:
    """Leave the objects detached, with their values and unsaved changes, if the block fails."""
    taken = [_take_snapshot(found) for found in objects if state_of(found).key is not None]
    try:
        yield
    except BaseException:
        _expunge(session, objects)
        for snapshot in taken:
            _restore(snapshot)
        raise


def _take_snapshot(entity: SQLModel) -> _Snapshot:
    state = state_of(entity)
    columns = {one.key: state.dict[one.key] for one in state.mapper.column_attrs if one.key in state.dict}
    changed = frozenset(name for name in columns if name in state.committed_state)
    related = {
        name: _values_before_and_now(state.dict[name], name, state.committed_state)
        for name in loaded_relationships(state)
    }
    return _Snapshot(entity, columns, changed, related)


def _values_before_and_now(value: Any, name: str, committed: dict[str, Any]) -> tuple[Any, Any]:
    now = value if value is None or isinstance(value, SQLModel) else related_objects(value)
    before = committed.get(name, now)
    if isinstance(now, list):
        return (related_objects(before) if before is None or isinstance(before, list | set | dict) else []), now
    return (before if before is None or isinstance(before, SQLModel) else None), now


def _expunge(session: Session, objects: Iterable[SQLModel]) -> None:
    for found in objects:
        if found in session:
            session.expunge(found)


def _restore(snapshot: _Snapshot) -> None:
    entity = snapshot.entity
    for name, value in snapshot.columns.items():
        set_committed_value(entity, name, value)
        if name in snapshot.changed:
            flag_modified(entity, name)
    for name, (before, now) in snapshot.related.items():
        set_committed_value(entity, name, before)
        if now != before:
            set_attribute(entity, name, now)
