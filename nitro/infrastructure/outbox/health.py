"""Health: what is open in the outbox, by handler, queue and state, and which of it is stuck.

A delivery is stuck when it has been due, queued or running for longer than `MAX_AGE`. Waiting for a retry or a
countdown is not due. `due_since` says since when, by the database's clock: neither a lease nor a publication moves it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, Row, Select, and_, case, func, literal, or_, select

from nitro.infrastructure.database import engine
from nitro.infrastructure.offload.declarations import time_limits
from nitro.infrastructure.offload.envelope import TRACKED_DELIVERIES
from nitro.infrastructure.outbox.schema import (
    DEAD,
    OPEN_STATES,
    QUEUED,
    RUNNING,
    WAITING,
    State,
    deliveries,
    is_dead,
    min_id_at,
    now,
    time_of_id,
    workers,
)
from nitro.infrastructure.outbox.states import IMMEDIATELY
from nitro.infrastructure.outbox.versions import ensure_current

MAX_AGE_SECONDS = 300.0
"""Seconds after which a delivery is stuck; a longer time limit of its handler is waited for while it runs."""

_c = deliveries.c


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryGroup:
    """The open deliveries of one handler, queue and state.

    Attributes:
        count: how many there are.
        stuck: how many of them are stuck.
        age: seconds since the oldest that is due became so, or began to run; None when none is due.
        worker: one that runs some of them, and the process in it.
    """

    handler: str
    queue: str
    state: State
    count: int
    stuck: int
    age: float | None
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the outbox does.

    Attributes:
        deliveries: how many wait, are queued, run and are dead.
        groups: the open ones, by handler, queue and state.
    """

    deliveries: dict[str, int]
    groups: tuple[DeliveryGroup, ...]

    @property
    def oldest_waiting_age(self) -> float | None:
        """Seconds since the oldest that waits became due; None when none is due."""
        return max((each.age for each in self.groups if each.state == WAITING and each.age is not None), default=None)

    @property
    def stuck(self) -> list[DeliveryGroup]:
        """Groups in which something is stuck, the oldest first."""
        return sorted((each for each in self.groups if each.stuck), key=lambda each: -(each.age or 0.0))


def read_health(max_age: float = MAX_AGE_SECONDS) -> Health:
    """How the outbox does: one pass over the open deliveries, however many closed ones there are."""
    ensure_current()
    with engine().connect() as connection:
        clock, dead = connection.execute(select(now(), _dead_count())).one()
        rows = connection.execute(_group_query(clock, max_age, time_limits())).all()
        names = _runner_names(connection, {row.worker for row in rows if row.worker})
    groups = tuple(_group_from_row(row, clock, names) for row in rows)
    states = Counter(dict.fromkeys((*OPEN_STATES, DEAD), 0))
    for group in groups:
        states[group.state] += group.count
    return Health(deliveries={**states, DEAD: dead}, groups=groups)


def _dead_count() -> Any:
    return select(func.count()).select_from(deliveries).where(is_dead()).scalar_subquery()


def _group_query(clock: float, max_age: float, limits: Mapping[str, float]) -> Select[Any]:
    """The groups. Nothing here asks for the first in some order, which a database may find by a walk over all rows."""
    since = _due_or_started_at()
    return (
        select(
            *(_c.handler, _c.queue, _c.state),
            func.count().label("number"),
            func.count(case((_is_stuck(since, clock, max_age, limits), 1))).label("stuck"),
            func.min(case((since <= clock, since))).label("since"),
            func.min(case((_lacks_due_since(clock), _c.emission))).label("emission"),
            func.min(case((_c.state == RUNNING, _c.worker))).label("worker"),
        )
        .where(_c.closed_at.is_(None), _c.state.in_(OPEN_STATES))
        .group_by(_c.handler, _c.queue, _c.state)
    )


def _due_or_started_at() -> ColumnElement[float]:
    """When a delivery became due, or began to run; where its other times are earlier, they were set by hand."""
    earlier = [
        (_c.state == RUNNING, _c.started_at),
        ((_c.state == QUEUED) & (_c.published_at < _c.due_since), _c.published_at),
        ((_c.state == WAITING) & (_c.due_at > IMMEDIATELY) & (_c.due_at < _c.due_since), _c.due_at),
    ]
    return case(*earlier, else_=_c.due_since)


def _is_stuck(
    since: ColumnElement[float], clock: float, max_age: float, limits: Mapping[str, float]
) -> ColumnElement[bool]:
    """Deliveries that are stuck. An untracked one has no handler's end to wait for once it is published."""
    allowed = _max_seconds_in_state(max_age, limits)
    long_ago = min_id_at(datetime.fromtimestamp(max(0.0, clock - max_age), UTC))
    old = or_(since < clock - allowed, _lacks_due_since(clock) & (_c.emission < long_ago))
    return and_(old, or_(_c.promise.in_(TRACKED_DELIVERIES), _c.state == WAITING))


def _max_seconds_in_state(max_age: float, limits: Mapping[str, float]) -> ColumnElement[float]:
    """Seconds that a delivery may be in its state."""
    longer = {handler: limit for handler, limit in limits.items() if limit > max_age}
    runs = [((_c.state == RUNNING) & (_c.handler == handler), limit) for handler, limit in longer.items()]
    return case(*runs, else_=literal(max_age, Double)) if runs else literal(max_age, Double)


def _lacks_due_since(clock: float) -> ColumnElement[bool]:
    """Rows that are due, of a version of the library that did not note since when: since their emission."""
    return _c.due_since.is_(None) & or_(_c.state == QUEUED, (_c.state == WAITING) & (_c.due_at <= clock))


def _runner_names(connection: Connection, runners: set[str]) -> dict[str, str]:
    """How people know those who run something, by what the rows call them."""
    parts = {runner: runner.partition("/") for runner in runners}
    boots = {boot for boot, _, _ in parts.values()}
    known = select(workers.c.boot, workers.c.name).where(workers.c.boot.in_(boots))
    names = dict(connection.execute(known).all()) if boots else {}
    return {
        runner: f"{names.get(boot, 'a worker that is gone')}, process {process.partition('-')[0]}"
        for runner, (boot, _, process) in parts.items()
    }


def _group_from_row(row: Row[Any], clock: float, names: Mapping[str, str]) -> DeliveryGroup:
    known = [] if row.since is None else [row.since]
    if row.emission is not None:
        known.append(time_of_id(row.emission).timestamp())
    age = max(0.0, clock - min(known)) if known else None
    facts = {name: getattr(row, name) for name in ("handler", "queue", "state", "stuck")}
    return DeliveryGroup(**facts, count=row.number, age=age, worker=names.get(row.worker))
