"""Operations on the outbox for operators: read, count, cancel, discard and replay deliveries."""

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
"""Deliveries that are read at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """A run that did not close its delivery: it was rescheduled, its process died, or the delivery was replayed later.

    Attributes:
        outcome: `dead` when the delivery became a dead letter by this run, or after it, and was replayed.
    """

    run: int
    started: datetime | None
    ended: datetime
    why: str
    outcome: Literal["retried", "dead"] = "retried"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """A delivery as its row describes it.

    Attributes:
        id: Celery task id, and idempotency key.
        sender: text that monitoring shows.
        state: state to display; `published` for an untracked delivery, whose row cannot tell whether its handler ran.
        due: time at which a relay checks it next; None for at any time, and for never again.
        replayed: time of its last replay.
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
        """The time at which the id of its emission was made."""
        return time_of_id(self.emission)


def read_deliveries(*conditions: ColumnElement[bool], limit: int | None = None) -> list[DeliveryRecord]:
    """Returns the deliveries that meet all conditions, the latest emission first."""
    ensure_current()
    query = (
        select(deliveries, emissions.c.event, emissions.c.sender)
        .select_from(deliveries.join(emissions))
        .where(*conditions)
        .order_by(_c.emission.desc(), _c.handler)
        .limit(limit)
    )
    with engine().connect() as connection:
        return [_record_from_delivery(row) for row in connection.execute(query)]


def latest_names(of: Literal["handler", "event"]) -> set[str]:
    """Returns the names of handlers, or of events, of the latest deliveries."""
    column = _c.handler if of == "handler" else emissions.c.event
    latest = select(column).select_from(deliveries.join(emissions)).order_by(_c.emission.desc()).limit(READ_BATCH)
    with engine().connect() as connection:
        return {name for name in connection.scalars(latest) if name}


def read_payloads(*conditions: ColumnElement[bool]) -> dict[str, str | None]:
    """Returns the payloads of the deliveries that meet all conditions, by task id."""
    query = select(_c.id, payload_column()).select_from(deliveries.join(emissions)).where(*conditions)
    with engine().connect() as connection:
        return dict(connection.execute(query).all())


def count_by_state(*conditions: ColumnElement[bool]) -> dict[str, int]:
    """Returns the number of deliveries that meet all conditions, by the state to display."""
    ensure_current()
    query = select(_c.state, _c.promise, func.count()).where(*conditions).group_by(_c.state, _c.promise)
    numbers: Counter[str] = Counter()
    with engine().connect() as connection:
        for state, promise, number in connection.execute(query):
            numbers[display_state(state, promise)] += number
    return dict(numbers)


def has_id_in(identities: Sequence[str]) -> ColumnElement[bool]:
    """Returns the condition for deliveries with one of these task ids, or of an emission with one of these ids."""
    stored = list(map(_stored_form, identities))
    return or_(_c.emission.in_(stored), _c.id.in_(stored))


def is_for_handler(handler: str) -> ColumnElement[bool]:
    """Returns the condition for deliveries to this handler."""
    return _c.handler == _stored_form(handler)


def is_of_event(event: str) -> ColumnElement[bool]:
    """Returns the condition for deliveries of this event, for queries that join the emissions."""
    return emissions.c.event == _stored_form(event)


def _stored_form(text: str) -> str:
    """Returns a text as the rows store it, with escapes for characters that the database cannot store."""
    ensure_current()
    return to_storable(text)


def is_emitted_before(moment: datetime) -> ColumnElement[bool]:
    """Returns the condition for deliveries that were emitted before a moment."""
    return _c.emission < min_id_at(moment)


def cancel(emission: str, handler: str | None = None) -> int:
    """Cancels the deliveries of an emission that have not started, and returns their number.

    Raises:
        NotTracked: the emission has no tracked delivery, or none to that handler.
    """
    ensure_current()
    conditions = [_c.emission == to_storable(emission), *([] if handler is None else [is_for_handler(handler)])]
    with write_session() as session:
        result = session.execute(_cancel_statement(*conditions))
        cancelled = result.rowcount  # type: ignore[attr-defined]  # an UPDATE's result
        exists = cancelled or session.scalar(select(func.count()).select_from(deliveries).where(*conditions))
    if not exists:
        raise NotTracked(emission, handler)
    return int(cancelled)


def revoke(task_ids: Sequence[str], *, running: bool = False) -> int:
    """Cancels deliveries with these task ids that have not started, or also running ones, and returns their number."""
    states = OPEN_STATES if running else (WAITING, QUEUED)
    with write_connection() as connection:
        return connection.execute(
            _cancel_statement(_c.closed_at.is_(None), _c.id.in_(task_ids), states=states)
        ).rowcount


def discard(*conditions: ColumnElement[bool]) -> int:
    """Cancels dead letters and deliveries that have not started, and returns their number."""
    ensure_current()
    with write_connection() as connection:
        return connection.execute(_cancel_statement(*conditions, states=(WAITING, QUEUED, DEAD))).rowcount


def replay(*conditions: ColumnElement[bool]) -> int:
    """Requeues closed deliveries, and returns their number. Idempotency keys stay, retries count from zero again.

    The error of a dead letter is added to its history.
    """
    ensure_current()
    with_payload = select(emissions.c.id).where(emissions.c.snapshot.is_not(None) | emissions.c.reload.is_not(None))
    reset: dict[str, Any] = {
        **RUN_AGAIN,
        "expires_at": None,
        "retries": 0,
        "losses": 0,
        "publications": 0,
        "closed_at": None,
        "replayed_at": now(),
        "error": None,
    }
    closed = (*conditions, _c.state.in_(CLOSED_STATES), _c.emission.in_(with_payload))
    with write_connection() as connection:
        _record_deaths(connection, *closed)
        return connection.execute(update(deliveries).where(*closed).values(reset)).rowcount


def _record_deaths(connection: Connection, *conditions: ColumnElement[bool]) -> None:
    """Adds the errors of dead letters to their histories before a replay, in batches."""
    key = (_c.emission, _c.handler)
    columns = (_c.attempts, _c.started_at, _c.closed_at, _c.error, _c.history)
    dead_letters = (
        select(*key, *columns).where(*conditions, is_dead()).order_by(*key).limit(READ_BATCH).with_for_update()
    )
    append = update(deliveries).where(_c.emission == bindparam("of_emission"), _c.handler == bindparam("of_handler"))
    after: tuple[str, str] = ("", "")
    while rows := connection.execute(dead_letters.where(tuple_(*key) > after)).all():
        parameters = [
            {"of_emission": row.emission, "of_handler": row.handler, "history_text": history_with_death(row)}
            for row in rows
        ]
        connection.execute(append.values(history=bindparam("history_text")), parameters)
        after = (rows[-1].emission, rows[-1].handler)


def _cancel_statement(*conditions: ColumnElement[bool], states: Sequence[str] = (WAITING, QUEUED)) -> Any:
    return update(deliveries).where(*conditions, _c.state.in_(states)).values(state=CANCELLED, closed_at=now())


def _record_from_delivery(row: Row[Any]) -> DeliveryRecord:
    names = DeliveryRecord.__dataclass_fields__.keys() - {"history"}
    columns: dict[str, Any] = {name: getattr(row, name) for name in names if hasattr(row, name)}
    times = {name: _to_datetime(getattr(row, f"{name}_at")) for name in ("published", "started", "closed", "replayed")}
    due = _to_datetime(row.due_at) if row.due_at and row.state not in CLOSED_STATES else None
    columns["state"] = display_state(row.state, row.promise)
    return DeliveryRecord(**columns | times, due=due, history=tuple(map(_past_run, (row.history or "").splitlines())))


def _past_run(line: str) -> PastRun:
    run = json.loads(line)
    ended = datetime.fromtimestamp(run["ended"], UTC)
    outcome = run.get("outcome", "retried")
    return PastRun(run=run["run"], started=_to_datetime(run["started"]), ended=ended, why=run["why"], outcome=outcome)


def _to_datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
