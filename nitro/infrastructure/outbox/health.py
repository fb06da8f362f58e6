"""Health of the outbox: numbers of open and stuck deliveries, by handler, queue and state.

A delivery is stuck when it has been due, queued or running for longer than `MAX_AGE_SECONDS`. A delivery that waits for
a retry or a countdown is not due. `due_since` holds the time since which it is due, by the database's clock. Leases and
publications do not change it.
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
"""Seconds after which a delivery is stuck. A longer time limit of its handler extends them while it runs."""

_c = deliveries.c


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryGroup:
    """The open deliveries of one handler, queue and state.

    Attributes:
        count: number of deliveries.
        stuck: number of stuck deliveries.
        age: seconds since the oldest due delivery became due, or started; None when none is due.
        worker: a worker that runs some of them, and its process.
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
    """The numbers of open, stuck and dead deliveries in the outbox.

    Attributes:
        deliveries: number of deliveries that wait, are queued, run and are dead, by state.
        groups: the open deliveries, by handler, queue and state.
    """

    deliveries: dict[str, int]
    groups: tuple[DeliveryGroup, ...]

    @property
    def oldest_waiting_age(self) -> float | None:
        """Seconds since the oldest waiting delivery became due; None when none is due."""
        return max((each.age for each in self.groups if each.state == WAITING and each.age is not None), default=None)

    @property
    def stuck_groups(self) -> list[DeliveryGroup]:
        """The groups with a stuck delivery, the oldest first."""
        return sorted((each for each in self.groups if each.stuck), key=lambda each: -(each.age or 0.0))


def read_health(max_age: float = MAX_AGE_SECONDS) -> Health:
    """Reads the health by one pass over the open deliveries; closed ones cost nothing."""
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
    """Returns the query of the groups. It orders nothing: with ORDER BY and LIMIT a database may scan all rows."""
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
    """Returns the time at which a delivery became due, or started.

    A `published_at` or `due_at` before `due_since` was set by hand, and counts.
    """
    earlier = [
        (_c.state == RUNNING, _c.started_at),
        ((_c.state == QUEUED) & (_c.published_at < _c.due_since), _c.published_at),
        ((_c.state == WAITING) & (_c.due_at > IMMEDIATELY) & (_c.due_at < _c.due_since), _c.due_at),
    ]
    return case(*earlier, else_=_c.due_since)


def _is_stuck(
    since: ColumnElement[float], clock: float, max_age: float, limits: Mapping[str, float]
) -> ColumnElement[bool]:
    """Returns the condition for stuck deliveries. An untracked delivery is never stuck once it is published."""
    max_seconds = _max_seconds_in_state(max_age, limits)
    min_recent_id = min_id_at(datetime.fromtimestamp(max(0.0, clock - max_age), UTC))
    is_old = or_(since < clock - max_seconds, _lacks_due_since(clock) & (_c.emission < min_recent_id))
    return and_(is_old, or_(_c.promise.in_(TRACKED_DELIVERIES), _c.state == WAITING))


def _max_seconds_in_state(max_age: float, limits: Mapping[str, float]) -> ColumnElement[float]:
    """Returns the seconds for which a delivery may be in its state."""
    long_limits = {handler: limit for handler, limit in limits.items() if limit > max_age}
    cases = [((_c.state == RUNNING) & (_c.handler == handler), limit) for handler, limit in long_limits.items()]
    return case(*cases, else_=literal(max_age, Double)) if cases else literal(max_age, Double)


def _lacks_due_since(clock: float) -> ColumnElement[bool]:
    """Returns the condition for due rows of an old version, without `due_since`; they are due since their emission."""
    return _c.due_since.is_(None) & or_(_c.state == QUEUED, (_c.state == WAITING) & (_c.due_at <= clock))


def _runner_names(connection: Connection, runners: set[str]) -> dict[str, str]:
    """Returns a readable name for each runner id: the worker's Celery name and the process id."""
    parts = {runner: runner.partition("/") for runner in runners}
    boots = {boot for boot, _, _ in parts.values()}
    query = select(workers.c.boot, workers.c.name).where(workers.c.boot.in_(boots))
    names = dict(connection.execute(query).all()) if boots else {}
    return {
        runner: f"{names.get(boot, 'a worker that is gone')}, process {process.partition('-')[0]}"
        for runner, (boot, _, process) in parts.items()
    }


def _group_from_row(row: Row[Any], clock: float, names: Mapping[str, str]) -> DeliveryGroup:
    times = [] if row.since is None else [row.since]
    if row.emission is not None:
        times.append(time_of_id(row.emission).timestamp())
    age = max(0.0, clock - min(times)) if times else None
    columns = {name: getattr(row, name) for name in ("handler", "queue", "state", "stuck")}
    return DeliveryGroup(**columns, count=row.number, age=age, worker=names.get(row.worker))
