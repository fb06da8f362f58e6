"""Snapshots of objects before a flush, from which they are restored when the flush fails."""

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
    """The values of one stored object, which a rollback would expire.

    Attributes:
        columns: values of the loaded columns.
        changed: names of columns that differ from the row.
        related: members of each loaded relationship, before and after the changes.
    """

    entity: SQLModel
    columns: dict[str, Any]
    changed: frozenset[str]
    related: dict[str, tuple[Any, Any]]


@contextmanager
def restore_on_failure(session: Session, objects: Sequence[SQLModel]) -> Iterator[None]:
    """Detaches the objects if the block fails, and restores their values and unsaved changes."""
    snapshots = [_take_snapshot(member) for member in objects if state_of(member).key is not None]
    try:
        yield
    except BaseException:
        _expunge(session, objects)
        for snapshot in snapshots:
            _restore(snapshot)
        raise


def _take_snapshot(entity: SQLModel) -> _Snapshot:
    state = state_of(entity)
    columns = {column.key: state.dict[column.key] for column in state.mapper.column_attrs if column.key in state.dict}
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
    for member in objects:
        if member in session:
            session.expunge(member)


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
