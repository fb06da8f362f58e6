"""Happenings: which emissions and deliveries something has become of since a moment, by the time when that was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, UnaryExpression, func, null, or_, select

from nitro.infrastructure.database import engine
from nitro.infrastructure.outbox.lineage import by_sender
from nitro.infrastructure.outbox.tables import (
    CANCELLED,
    DEAD,
    DONE,
    OPEN,
    WAITING,
    deliveries,
    emissions,
    first_id,
    now,
)

Key = tuple[Any, ...]
"""The id of an emission, the handler of a delivery of it or None, and what changes with each step."""

_d, _e = deliveries.c, emissions.c
STEPS: dict[str, ColumnElement[bool]] = {
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
OUTCOMES = frozenset({"done", "started", "failed", "raised", "cancelled", "skipped", "queued"})
"""What can become of a handler that has no row."""
EMITTED = "emitted"
_STAMP = (_d.emission, _d.handler, _d.state, _d.attempts, _d.publications, _d.published_at, _d.replayed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody asks for; None, or no state, stands for all."""

    event: str | None = None
    handler: str | None = None
    sender: str | None = None
    states: frozenset[str] = frozenset()

    @property
    def of_emission(self) -> list[ColumnElement[bool]]:
        """Emissions that meet it."""
        event = [] if self.event is None else [_e.event == self.event]
        return event + ([] if self.sender is None else [by_sender(self.sender)])


def clock() -> datetime:
    """The time by the database's clock."""
    with engine().connect() as connection:
        return datetime.fromtimestamp(connection.scalar(select(now())) or 0.0, UTC)


def happened(since: datetime, wanted: Wanted, most: int) -> tuple[list[Key], bool]:
    """What has happened since a moment, so many of each kind at most, the latest; and whether there is more."""
    keys: list[Key] = []
    cut = False
    with engine().connect() as connection:
        for asked in _questions(since, wanted):
            found = [tuple(row) for row in connection.execute(asked.limit(most + 1))]
            cut |= len(found) > most
            keys += found[:most]
    return keys, cut


def _questions(since: datetime, wanted: Wanted) -> Iterator[Select[Any]]:
    """Each found by an index of its own: none of them orders by what another index would be walked for."""
    if not wanted.states or wanted.states & STEPS.keys():
        moment = since.timestamp()
        latest = func.coalesce(_d.started_at, _d.published_at, _d.due_since).desc()
        times = (_d.due_since, _d.published_at, _d.started_at)
        changed = or_(_d.due_since.is_(None), *(time >= moment for time in times))
        yield _deliveries(wanted, latest, _d.closed_at.is_(None), _d.state.in_(OPEN), changed)
        yield _deliveries(wanted, _d.closed_at.desc(), _d.closed_at >= moment)
        yield _deliveries(wanted, _d.replayed_at.desc(), _d.replayed_at >= moment)
    if not wanted.states or wanted.states & (OUTCOMES | {EMITTED}):
        yield _emissions(wanted, since)


def _deliveries(wanted: Wanted, latest: UnaryExpression[Any], *conditions: ColumnElement[bool]) -> Select[Any]:
    asked = select(*_STAMP).where(*conditions).order_by(latest)
    if wanted.of_emission:
        asked = asked.select_from(deliveries.join(emissions)).where(*wanted.of_emission)
    if wanted.handler is not None:
        asked = asked.where(_d.handler == wanted.handler)
    steps = [STEPS[state] for state in sorted(wanted.states & STEPS.keys())]
    return asked.where(or_(*steps)) if steps else asked


def _emissions(wanted: Wanted, since: datetime) -> Select[Any]:
    """Emissions of since a moment; of those without a row for a handler their story tells what became of it."""
    asked = select(_e.id, null(), _e.story.is_not(None)).where(_e.id >= first_id(since), *wanted.of_emission)
    if wanted.handler is not None:
        asked = asked.where(_e.story.contains(json.dumps(wanted.handler), autoescape=True))
    elif wanted.states and EMITTED not in wanted.states:
        outcomes = (json.dumps(state) for state in sorted(wanted.states & OUTCOMES))
        asked = asked.where(or_(*(_e.story.contains(outcome, autoescape=True) for outcome in outcomes)))
    return asked.order_by(_e.id.desc())
