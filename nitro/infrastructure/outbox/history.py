"""Lineage: an emission with what became of it, and the emissions that its handlers made, as far as they are kept."""

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
"""Levels of a tree. What is deeper is a tree of its own: neither people nor what reads JSON follow one for ever."""


@dataclass(slots=True, kw_only=True)
class EmissionRecord:
    """An emission.

    Attributes:
        at: when it began by the emitter's clock; without a story, when its id was made.
        took: seconds until its inline handlers had ended; None without a story.
        process: host and process id of the emitter; None without a story.
        caused_in: the handler that emitted it.
        rolled_back: whether the transaction that it was in was not committed; the journal tells.
        turns: its inline handlers, those that were skipped, and those that were queued without a row, in order.
        deliveries: the others, by handler.
        children: what its handlers emitted, the earliest first.
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
    """The tree that an emission, or that of a delivery, is in, from its root; several when the root is not kept.

    So many as well where it has more levels than `DEEPEST`.

    Args:
        identity: id of an emission, or of a delivery, which is its Celery task id.
    """
    ensure_current()
    identity = to_storable(identity)
    by_delivery = select(deliveries.c.emission).where(deliveries.c.id == identity)
    asked = select(_e.id, _e.root).where(or_(_e.id == identity, _e.id.in_(by_delivery)))
    with engine().connect() as connection:
        found = connection.execute(asked).all()
    return _split_deep_trees(_build_trees(_records_of_roots(row.root or row.id for row in found)))


def is_by_sender(sender: str) -> ColumnElement[bool]:
    """Emissions by a sender, such as `Order:o1`, whatever `__nitro_show__` of its class adds."""
    return or_(_e.sender == sender, func.substr(_e.sender, 1, len(sender) + 1) == f"{sender} ")


def trees_by_sender(sender: str, since: datetime, most: int) -> tuple[list[EmissionRecord], bool]:
    """The latest emissions by a sender, each with what its handlers emitted, and whether there are more.

    The earliest comes first.
    """
    ensure_current()
    shown = is_by_sender(to_storable(sender))
    asked = select(_e.id, _e.root).where(_e.id >= min_id_at(since), shown).order_by(_e.id.desc())
    with engine().connect() as connection:
        all_found = connection.execute(asked.limit(most + 1)).all()
    found = all_found[:most]
    mine, told = {row.id for row in found}, _records_of_roots(row.root or row.id for row in found)
    _build_trees(told)
    tops = mine - _descendant_ids(each for each in told if each.id in mine)
    return _split_deep_trees([each for each in told if each.id in tops]), len(all_found) > most


def has_split_trees(told: Sequence[EmissionRecord]) -> bool:
    """Whether some of these trees go on where others of them end."""
    return not _descendant_ids(told).union(each.id for each in told).isdisjoint(each.parent for each in told)


def records_by_ids(identities: Collection[str]) -> list[EmissionRecord]:
    """The emissions with these ids, the earliest first, each without its children."""
    return _read_records(_e.id.in_(identities)) if identities else []


def _records_of_roots(roots: Iterable[str]) -> list[EmissionRecord]:
    """The emissions of these roots, and all that they have caused."""
    wanted = sorted(set(roots))
    return _read_records(or_(_e.id.in_(wanted), _e.root.in_(wanted))) if wanted else []


def _read_records(which: ColumnElement[bool]) -> list[EmissionRecord]:
    with engine().connect() as connection:
        rows = connection.execute(select(*EMISSION_COLUMNS).where(which).order_by(_e.id)).all()
    sent: dict[str, list[DeliveryRecord]] = defaultdict(list)
    for entry in read_deliveries(which):
        sent[entry.emission].append(entry)
    return [_record_from_row(row, sent[row.id]) for row in rows]


def _record_from_row(row: Any, sent: list[DeliveryRecord]) -> EmissionRecord:
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
        deliveries=sent,
    )


def _build_trees(told: Sequence[EmissionRecord]) -> list[EmissionRecord]:
    """Put each below its parent; those whose parent is not among them."""
    by_id = {each.id: each for each in told}
    tops: list[EmissionRecord] = []
    for each in told:
        parent = by_id.get(each.parent or "")
        (tops if parent is None else parent.children).append(each)
    return tops


def _descendant_ids(told: Iterable[EmissionRecord]) -> set[str]:
    """The ids of all that these have caused."""
    found: set[str] = set()
    coming = [child for each in told for child in each.children]
    while coming:
        each = coming.pop()
        if each.id not in found:
            found.add(each.id)
            coming += each.children
    return found


def _split_deep_trees(tops: Sequence[EmissionRecord]) -> list[EmissionRecord]:
    """These trees, cut at every so many levels into further ones; the earliest first."""
    trees, level, depth = list(tops), list(tops), 1
    while level:
        below = [child for each in level for child in each.children]
        if depth % MAX_TREE_DEPTH == 0:
            trees += below
            for each in level:
                each.children = []
        level, depth = below, depth + 1
    return sorted(trees, key=lambda each: each.id)


ChangeKey = tuple[Any, ...]
"""The id of an emission, the handler of a delivery of it or None, and what changes with each step."""

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
"""Deliveries that have come into a state, as far as their columns tell; a history may tell of others."""
OUTCOMES_WITHOUT_ROW = frozenset({"done", "started", "failed", "raised", "cancelled", "skipped", "queued"})
"""What can become of a handler that has no row."""
EMITTED = "emitted"
_CHANGE_KEY_COLUMNS = (_d.emission, _d.handler, _d.state, _d.attempts, _d.publications, _d.published_at, _d.replayed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFilter:
    """What somebody asks for; None, or no state, stands for all."""

    event: str | None = None
    handler: str | None = None
    sender: str | None = None
    states: frozenset[str] = frozenset()

    @property
    def emission_conditions(self) -> list[ColumnElement[bool]]:
        """Emissions that meet it."""
        event = [] if self.event is None else [_e.event == self.event]
        return event + ([] if self.sender is None else [is_by_sender(self.sender)])


def database_time() -> datetime:
    """The time by the database's clock."""
    with engine().connect() as connection:
        return datetime.fromtimestamp(connection.scalar(select(now())) or 0.0, UTC)


def changes_since(since: datetime, wanted: HistoryFilter, most: int) -> tuple[list[ChangeKey], bool]:
    """What has happened since a moment, so many of each kind at most, the latest; and whether there is more."""
    keys: list[ChangeKey] = []
    cut = False
    with engine().connect() as connection:
        for asked in _change_queries(since, wanted):
            found = [tuple(row) for row in connection.execute(asked.limit(most + 1))]
            cut |= len(found) > most
            keys += found[:most]
    return keys, cut


def _change_queries(since: datetime, wanted: HistoryFilter) -> Iterator[Select[Any]]:
    """Each found by an index of its own: none of them orders by what another index would be walked for."""
    if not wanted.states or wanted.states & STATE_CONDITIONS.keys():
        moment = since.timestamp()
        latest = func.coalesce(_d.started_at, _d.published_at, _d.due_since).desc()
        times = (_d.due_since, _d.published_at, _d.started_at)
        changed = or_(_d.due_since.is_(None), *(time >= moment for time in times))
        yield _delivery_query(wanted, latest, _d.closed_at.is_(None), _d.state.in_(OPEN_STATES), changed)
        yield _delivery_query(wanted, _d.closed_at.desc(), _d.closed_at >= moment)
        yield _delivery_query(wanted, _d.replayed_at.desc(), _d.replayed_at >= moment)
    if not wanted.states or wanted.states & (OUTCOMES_WITHOUT_ROW | {EMITTED}):
        yield _emission_query(wanted, since)


def _delivery_query(
    wanted: HistoryFilter, latest: UnaryExpression[Any], *conditions: ColumnElement[bool]
) -> Select[Any]:
    asked = select(*_CHANGE_KEY_COLUMNS).where(*conditions).order_by(latest)
    if wanted.emission_conditions:
        asked = asked.select_from(deliveries.join(emissions)).where(*wanted.emission_conditions)
    if wanted.handler is not None:
        asked = asked.where(_d.handler == wanted.handler)
    steps = [STATE_CONDITIONS[state] for state in sorted(wanted.states & STATE_CONDITIONS.keys())]
    return asked.where(or_(*steps)) if steps else asked


def _emission_query(wanted: HistoryFilter, since: datetime) -> Select[Any]:
    """Emissions of since a moment; of those without a row for a handler their story tells what became of it."""
    asked = select(_e.id, null(), _e.story.is_not(None)).where(_e.id >= min_id_at(since), *wanted.emission_conditions)
    if wanted.handler is not None:
        asked = asked.where(_e.story.contains(json.dumps(wanted.handler), autoescape=True))
    elif wanted.states and EMITTED not in wanted.states:
        outcomes = (json.dumps(state) for state in sorted(wanted.states & OUTCOMES_WITHOUT_ROW))
        asked = asked.where(or_(*(_e.story.contains(outcome, autoescape=True) for outcome in outcomes)))
    return asked.order_by(_e.id.desc())
