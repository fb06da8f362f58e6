"""The registry: what an operator sees of the outbox, and what he may do with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, or_, select, tuple_, update

from nitro.errors import NotTracked
from nitro.infrastructure.database import engine, write_connection, write_session
from nitro.infrastructure.outbox.rows import payload_column
from nitro.infrastructure.outbox.schema import (
    CANCELLED,
    CLOSED_STATES,
    DEAD,
    OPEN_STATES,
    QUEUED,
    WAITING,
    deliveries,
    emissions,
    is_dead,
    min_id_at,
    now,
    time_of_id,
)
from nitro.infrastructure.outbox.states import RUN_AGAIN, DisplayState, display_state, history_with_death
from nitro.infrastructure.outbox.texts import to_storable
from nitro.infrastructure.outbox.versions import ensure_current

_c = deliveries.c
READ_BATCH = 500
"""Deliveries that are read at a time: dead letters with their errors, the latest with their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """A run that did not close its delivery: it was put off, its process died, or its delivery was replayed after it.

    Attributes:
        outcome: `dead` of what was replayed: that its delivery died, by this run or after it.
    """

    run: int
    started: datetime | None
    ended: datetime
    why: str
    outcome: Literal["retried", "dead"] = "retried"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """A delivery as it stands.

    Attributes:
        id: Celery task id, and idempotency key.
        sender: what monitoring shows of the sender.
        state: as it is shown; `published` where no row says whether the handler has run.
        due: when a relay looks at it next; None when it may at any time, or never again.
        replayed: when somebody last had it run again after it was closed.
        history: its runs that did not close it, the earliest first.
    """

    id: str
    emission: str
    handler: str
    event: str | None
    sender: str
    state: DisplayState
    promise: str
    queue: str
    attempts: int
    retries: int
    losses: int
    publications: int
    due: datetime | None
    published: datetime | None
    started: datetime | None
    closed: datetime | None
    replayed: datetime | None
    worker: str | None
    error: str | None
    history: tuple[PastRun, ...]

    @property
    def emitted_at(self) -> datetime:
        """When the id of its emission was made."""
        return time_of_id(self.emission)


def read_deliveries(*conditions: ColumnElement[bool], limit: int | None = None) -> list[DeliveryRecord]:
    """The deliveries that meet all conditions, the latest emission first."""
    ensure_current()
    found = (
        select(deliveries, emissions.c.event, emissions.c.sender)
        .select_from(deliveries.join(emissions))
        .where(*conditions)
        .order_by(_c.emission.desc(), _c.handler)
        .limit(limit)
    )
    with engine().connect() as connection:
        return [_record_from_delivery(row) for row in connection.execute(found)]


def latest_names(of: Literal["handler", "event"]) -> set[str]:
    """The names of handlers, or of events, that the latest deliveries have."""
    column = _c.handler if of == "handler" else emissions.c.event
    latest = select(column).select_from(deliveries.join(emissions)).order_by(_c.emission.desc()).limit(READ_BATCH)
    with engine().connect() as connection:
        return {name for name in connection.scalars(latest) if name}


def read_payloads(*conditions: ColumnElement[bool]) -> dict[str, str | None]:
    """What the handlers of the deliveries that meet all conditions are called with, as the codec wrote it, by id."""
    found = select(_c.id, payload_column()).select_from(deliveries.join(emissions)).where(*conditions)
    with engine().connect() as connection:
        return dict(connection.execute(found).all())


def count_by_state(*conditions: ColumnElement[bool]) -> dict[str, int]:
    """How many deliveries meet all conditions, by their state as it is shown."""
    ensure_current()
    counted = select(_c.state, _c.promise, func.count()).where(*conditions).group_by(_c.state, _c.promise)
    numbers: Counter[str] = Counter()
    with engine().connect() as connection:
        for state, promise, number in connection.execute(counted):
            numbers[display_state(state, promise)] += number
    return dict(numbers)


def has_id_in(identities: Sequence[str]) -> ColumnElement[bool]:
    """Deliveries with one of these ids, or of one of these emissions."""
    known = list(map(_stored_form, identities))
    return or_(_c.emission.in_(known), _c.id.in_(known))


def is_for_handler(handler: str) -> ColumnElement[bool]:
    """Deliveries to this handler."""
    return _c.handler == _stored_form(handler)


def is_of_event(event: str) -> ColumnElement[bool]:
    """Deliveries of the emissions of this event, of those that are read with their emissions."""
    return emissions.c.event == _stored_form(event)


def _stored_form(text: str) -> str:
    """A text as the rows have it; what no database can store is in none of them."""
    ensure_current()
    return to_storable(text)


def is_emitted_before(moment: datetime) -> ColumnElement[bool]:
    """Deliveries of emissions of before a moment."""
    return _c.emission < min_id_at(moment)


def cancel(emission: str, handler: str | None = None) -> int:
    """Cancel those of an emission that have not started; how many.

    Raises:
        NotTracked: nothing of that emission, or for that handler of it, is tracked.
    """
    ensure_current()
    mine = [_c.emission == to_storable(emission), *([] if handler is None else [is_for_handler(handler)])]
    with write_session() as session:
        cancelled = session.execute(_cancel_statement(*mine)).rowcount  # type: ignore[attr-defined]  # an UPDATE's result
        known = cancelled or session.scalar(select(func.count()).select_from(deliveries).where(*mine))
    if not known:
        raise NotTracked(emission, handler)
    return int(cancelled)


def revoke(task_ids: Sequence[str], *, running: bool = False) -> int:
    """Cancel those with these Celery task ids that have not started, or that were ended while they ran; how many."""
    states = OPEN_STATES if running else (WAITING, QUEUED)
    with write_connection() as connection:
        return connection.execute(
            _cancel_statement(_c.closed_at.is_(None), _c.id.in_(task_ids), states=states)
        ).rowcount


def discard(*conditions: ColumnElement[bool]) -> int:
    """Give up dead letters and what has not started; how many."""
    ensure_current()
    with write_connection() as connection:
        return connection.execute(_cancel_statement(*conditions, states=(WAITING, QUEUED, DEAD))).rowcount


def replay(*conditions: ColumnElement[bool]) -> int:
    """Have closed deliveries run again, under the same idempotency key and with all their retries; how many.

    What a dead one has died of is added to its history.
    """
    ensure_current()
    payload = select(emissions.c.id).where(emissions.c.snapshot.is_not(None) | emissions.c.reload.is_not(None))
    anew: dict[str, Any] = {
        **RUN_AGAIN,
        "expires_at": None,
        "retries": 0,
        "losses": 0,
        "publications": 0,
        "closed_at": None,
        "replayed_at": now(),
        "error": None,
    }
    closed = (*conditions, _c.state.in_(CLOSED_STATES), _c.emission.in_(payload))
    with write_connection() as connection:
        _record_deaths(connection, *closed)
        return connection.execute(update(deliveries).where(*closed).values(anew)).rowcount


def _record_deaths(connection: Connection, *conditions: ColumnElement[bool]) -> None:
    """Add to the histories of dead letters that are replayed why they died, some at a time."""
    key = (_c.emission, _c.handler)
    facts = (_c.attempts, _c.started_at, _c.closed_at, _c.error, _c.history)
    some = select(*key, *facts).where(*conditions, is_dead()).order_by(*key).limit(READ_BATCH).with_for_update()
    noting = update(deliveries).where(_c.emission == bindparam("of_emission"), _c.handler == bindparam("of_handler"))
    after: tuple[str, str] = ("", "")
    while found := connection.execute(some.where(tuple_(*key) > after)).all():
        notes = [
            {"of_emission": row.emission, "of_handler": row.handler, "told": history_with_death(row)} for row in found
        ]
        connection.execute(noting.values(history=bindparam("told")), notes)
        after = (found[-1].emission, found[-1].handler)


def _cancel_statement(*conditions: ColumnElement[bool], states: Sequence[str] = (WAITING, QUEUED)) -> Any:
    return update(deliveries).where(*conditions, _c.state.in_(states)).values(state=CANCELLED, closed_at=now())


def _record_from_delivery(row: Row[Any]) -> DeliveryRecord:
    names = DeliveryRecord.__dataclass_fields__.keys() - {"history"}
    facts: dict[str, Any] = {name: getattr(row, name) for name in names if hasattr(row, name)}
    times = {name: _to_datetime(getattr(row, f"{name}_at")) for name in ("published", "started", "closed", "replayed")}
    due = _to_datetime(row.due_at) if row.due_at and row.state not in CLOSED_STATES else None
    facts["state"] = display_state(row.state, row.promise)
    return DeliveryRecord(**facts | times, due=due, history=tuple(map(_past_run, (row.history or "").splitlines())))


def _past_run(line: str) -> PastRun:
    run = json.loads(line)
    ended = datetime.fromtimestamp(run["ended"], UTC)
    outcome = run.get("outcome", "retried")
    return PastRun(run=run["run"], started=_to_datetime(run["started"]), ended=ended, why=run["why"], outcome=outcome)


def _to_datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
