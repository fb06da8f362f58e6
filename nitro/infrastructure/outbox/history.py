"""History of emissions from the rows: each emission with its deliveries, the trees of causes, and recent changes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, UnaryExpression, func, null, or_, select

from nitro.infrastructure.database import engine
from nitro.infrastructure.offload.report import EmissionReport, HandlerReport
from nitro.infrastructure.outbox.operations import DeliveryRecord, read_deliveries
from nitro.infrastructure.outbox.schema import (
    CANCELLED,
    DEAD,
    DONE,
    OPEN_STATES,
    WAITING,
    deliveries,
    emissions,
    min_id_at,
    now,
    time_of_id,
)
from nitro.infrastructure.outbox.texts import to_storable
from nitro.infrastructure.outbox.versions import ensure_current

_e = emissions.c
EMISSION_COLUMNS = (_e.id, _e.event, _e.sender, _e.root, _e.parent, _e.story)
MAX_TREE_DEPTH = 100
"""Levels of a tree. A deeper tree is split into several, because JSON readers limit the depth of nesting."""


@dataclass(slots=True, kw_only=True)
class EmissionRecord:
    """An emission, as its rows describe it.

    Attributes:
        at: start by the emitter's clock; without a report of the emission, the time at which its id was made.
        took: seconds until its inline handlers had ended; None without a report.
        process: host and process id of the emitter; None without a report.
        caused_in: the handler that emitted it.
        rolled_back: whether its transaction was rolled back; only the journal records it.
        turns: its inline, skipped and untracked handlers, in order.
        deliveries: the deliveries with a row, by handler.
        children: the emissions of its handlers, the earliest first.
    """

    id: str
    event: str | None
    sender: str
    root: str | None
    parent: str | None
    at: datetime
    took: float | None
    process: str | None
    caused_in: str | None
    error: str | None
    rolled_back: bool
    turns: list[HandlerReport]
    deliveries: list[DeliveryRecord]
    children: list[EmissionRecord] = field(default_factory=list)


def trees_by_id(identity: str) -> list[EmissionRecord]:
    """Returns the tree of an emission from its root; several trees when the root's row is deleted.

    A tree deeper than `MAX_TREE_DEPTH` is also split into several.

    Args:
        identity: id of an emission, or id of one of its deliveries (the Celery task id).
    """
    ensure_current()
    identity = to_storable(identity)
    by_delivery = select(deliveries.c.emission).where(deliveries.c.id == identity)
    query = select(_e.id, _e.root).where(or_(_e.id == identity, _e.id.in_(by_delivery)))
    with engine().connect() as connection:
        rows = connection.execute(query).all()
    return _split_deep_trees(_build_trees(_records_of_roots(row.root or row.id for row in rows)))


def is_by_sender(sender: str) -> ColumnElement[bool]:
    """Returns the condition for emissions by a sender, such as `Order:o1`, with any text of `__nitro_show__`."""
    return or_(_e.sender == sender, func.substr(_e.sender, 1, len(sender) + 1) == f"{sender} ")


def trees_by_sender(sender: str, since: datetime, limit: int) -> tuple[list[EmissionRecord], bool]:
    """Returns the trees of the latest emissions by a sender, the earliest first, and whether there are more.

    Args:
        limit: number of emissions at most.
    """
    ensure_current()
    is_sender = is_by_sender(to_storable(sender))
    query = select(_e.id, _e.root).where(_e.id >= min_id_at(since), is_sender).order_by(_e.id.desc())
    with engine().connect() as connection:
        rows = connection.execute(query.limit(limit + 1)).all()
    latest = rows[:limit]
    ids, records = {row.id for row in latest}, _records_of_roots(row.root or row.id for row in latest)
    _build_trees(records)
    top_ids = ids - _descendant_ids(each for each in records if each.id in ids)
    return _split_deep_trees([each for each in records if each.id in top_ids]), len(rows) > limit


def has_split_trees(trees: Sequence[EmissionRecord]) -> bool:
    """Whether one of these trees continues another one."""
    return not _descendant_ids(trees).union(each.id for each in trees).isdisjoint(each.parent for each in trees)


def records_by_ids(identities: Collection[str]) -> list[EmissionRecord]:
    """Returns the emissions with these ids, the earliest first, each without its children."""
    return _read_records(_e.id.in_(identities)) if identities else []


def _records_of_roots(roots: Iterable[str]) -> list[EmissionRecord]:
    """Returns the emissions with these ids, and all emissions that they have caused."""
    root_ids = sorted(set(roots))
    return _read_records(or_(_e.id.in_(root_ids), _e.root.in_(root_ids))) if root_ids else []


def _read_records(condition: ColumnElement[bool]) -> list[EmissionRecord]:
    with engine().connect() as connection:
        rows = connection.execute(select(*EMISSION_COLUMNS).where(condition).order_by(_e.id)).all()
    deliveries_by_emission: dict[str, list[DeliveryRecord]] = defaultdict(list)
    for delivery in read_deliveries(condition):
        deliveries_by_emission[delivery.emission].append(delivery)
    return [_record_from_row(row, deliveries_by_emission[row.id]) for row in rows]


def _record_from_row(row: Any, delivery_records: list[DeliveryRecord]) -> EmissionRecord:
    story: EmissionReport | None = json.loads(row.story) if row.story else None
    return EmissionRecord(
        id=row.id,
        event=row.event,
        sender=row.sender,
        root=row.root,
        parent=row.parent,
        at=time_of_id(row.id) if story is None else datetime.fromtimestamp(story["at"], UTC),
        took=story and story["took"],
        process=story and story["process"],
        caused_in=story and story["caused_in"],
        error=story and story["error"],
        rolled_back=story is not None and story.get("rolled_back", False),
        turns=story["handlers"] if story is not None else [],
        deliveries=delivery_records,
    )


def _build_trees(records: Sequence[EmissionRecord]) -> list[EmissionRecord]:
    """Adds each record to the children of its parent, and returns the records without a parent among them."""
    by_id = {each.id: each for each in records}
    tops: list[EmissionRecord] = []
    for each in records:
        parent = by_id.get(each.parent or "")
        (tops if parent is None else parent.children).append(each)
    return tops


def _descendant_ids(records: Iterable[EmissionRecord]) -> set[str]:
    """Returns the ids of all emissions below these in their trees."""
    ids: set[str] = set()
    unvisited = [child for each in records for child in each.children]
    while unvisited:
        each = unvisited.pop()
        if each.id not in ids:
            ids.add(each.id)
            unvisited += each.children
    return ids


def _split_deep_trees(tops: Sequence[EmissionRecord]) -> list[EmissionRecord]:
    """Splits trees deeper than `MAX_TREE_DEPTH`, and returns all trees, the earliest first."""
    trees, level, depth = list(tops), list(tops), 1
    while level:
        next_level = [child for each in level for child in each.children]
        if depth % MAX_TREE_DEPTH == 0:
            trees += next_level
            for each in level:
                each.children = []
        level, depth = next_level, depth + 1
    return sorted(trees, key=lambda each: each.id)


ChangeKey = tuple[Any, ...]
"""The id of an emission, the handler of a delivery or None, and the columns that change with each step."""

_d, _e = deliveries.c, emissions.c
STATE_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "waiting": _d.state == WAITING,
    "queued": _d.published_at.is_not(None),
    "running": or_(_d.started_at.is_not(None), _d.history.is_not(None)),
    "retried": _d.history.is_not(None),
    "replayed": _d.replayed_at.is_not(None),
    "done": _d.state == DONE,
    "cancelled": _d.state == CANCELLED,
    "dead": or_(_d.state == DEAD, _d.replayed_at.is_not(None)),
}
"""Conditions for deliveries that were once in a state, by their columns; `history` may hold further changes."""
OUTCOMES_WITHOUT_ROW = frozenset({"done", "started", "failed", "raised", "cancelled", "skipped", "queued"})
"""Outcomes of a handler that has no row."""
EMITTED = "emitted"
_CHANGE_KEY_COLUMNS = (_d.emission, _d.handler, _d.state, _d.attempts, _d.publications, _d.published_at, _d.replayed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFilter:
    """A filter of changes; None, or an empty set of states, matches all."""

    event: str | None = None
    handler: str | None = None
    sender: str | None = None
    states: frozenset[str] = frozenset()

    @property
    def emission_conditions(self) -> list[ColumnElement[bool]]:
        """Conditions for emissions that match event and sender."""
        conditions = [] if self.event is None else [_e.event == self.event]
        return conditions + ([] if self.sender is None else [is_by_sender(self.sender)])


def database_time() -> datetime:
    """Returns the time by the database's clock."""
    with engine().connect() as connection:
        return datetime.fromtimestamp(connection.scalar(select(now())) or 0.0, UTC)


def changes_since(since: datetime, filter_: HistoryFilter, limit: int) -> tuple[list[ChangeKey], bool]:
    """Returns the latest changes since a moment, at most `limit` of each query, and whether there are more."""
    keys: list[ChangeKey] = []
    is_truncated = False
    with engine().connect() as connection:
        for query in _change_queries(since, filter_):
            rows = [tuple(row) for row in connection.execute(query.limit(limit + 1))]
            is_truncated |= len(rows) > limit
            keys += rows[:limit]
    return keys, is_truncated


def _change_queries(since: datetime, filter_: HistoryFilter) -> Iterator[Select[Any]]:
    """Yields one query for each index; none orders by a column of another index, which a database might scan."""
    if not filter_.states or filter_.states & STATE_CONDITIONS.keys():
        moment = since.timestamp()
        latest = func.coalesce(_d.started_at, _d.published_at, _d.due_since).desc()
        times = (_d.due_since, _d.published_at, _d.started_at)
        changed = or_(_d.due_since.is_(None), *(time >= moment for time in times))
        yield _delivery_query(filter_, latest, _d.closed_at.is_(None), _d.state.in_(OPEN_STATES), changed)
        yield _delivery_query(filter_, _d.closed_at.desc(), _d.closed_at >= moment)
        yield _delivery_query(filter_, _d.replayed_at.desc(), _d.replayed_at >= moment)
    if not filter_.states or filter_.states & (OUTCOMES_WITHOUT_ROW | {EMITTED}):
        yield _emission_query(filter_, since)


def _delivery_query(
    filter_: HistoryFilter, latest: UnaryExpression[Any], *conditions: ColumnElement[bool]
) -> Select[Any]:
    query = select(*_CHANGE_KEY_COLUMNS).where(*conditions).order_by(latest)
    if filter_.emission_conditions:
        query = query.select_from(deliveries.join(emissions)).where(*filter_.emission_conditions)
    if filter_.handler is not None:
        query = query.where(_d.handler == filter_.handler)
    in_states = [STATE_CONDITIONS[state] for state in sorted(filter_.states & STATE_CONDITIONS.keys())]
    return query.where(or_(*in_states)) if in_states else query


def _emission_query(filter_: HistoryFilter, since: datetime) -> Select[Any]:
    """Returns the query for emissions since a moment; `story` holds the outcomes of handlers without a row."""
    query = select(_e.id, null(), _e.story.is_not(None)).where(_e.id >= min_id_at(since), *filter_.emission_conditions)
    if filter_.handler is not None:
        query = query.where(_e.story.contains(json.dumps(filter_.handler), autoescape=True))
    elif filter_.states and EMITTED not in filter_.states:
        outcomes = (json.dumps(state) for state in sorted(filter_.states & OUTCOMES_WITHOUT_ROW))
        query = query.where(or_(*(_e.story.contains(outcome, autoescape=True) for outcome in outcomes)))
    return query.order_by(_e.id.desc())
