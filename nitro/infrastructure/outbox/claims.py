"""Claims: a worker takes a delivery, and closes it in one of four ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    CursorResult,
    ScalarSelect,
    Update,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from nitro.errors import DeliveryLost
from nitro.infrastructure.database import CachedStatement, autocommit_connection, engine, write_connection
from nitro.infrastructure.outbox.rows import lease_seconds, payload_column
from nitro.infrastructure.outbox.schema import (
    DONE,
    MAX_NAME_CHARACTERS,
    QUEUED,
    RUNNING,
    State,
    deliveries,
    emissions,
    is_open,
    is_unlocked,
    now,
)
from nitro.infrastructure.outbox.states import (
    IMMEDIATELY,
    RUN_AGAIN,
    ColumnValues,
    dead_values,
    expired_values,
    history_values,
    retry_values,
    waiting_or_dead_values,
)
from nitro.infrastructure.outbox.texts import MAX_ID_CHARACTERS, to_storable, to_storable_id
from nitro.infrastructure.outbox.versions import ensure_current

MAX_LOSSES = 5
"""Runs whose process died, after which a delivery is dead: it is taken for what kills them."""


ExecuteClosing = Callable[[Connection, dict[str, object]], CursorResult[Any]]
"""Executes what closes a run, or puts it off."""

_KEY_PARAMETERS: tuple[BindParameter[str], BindParameter[str]] = (bindparam("of_emission"), bindparam("of_handler"))


_ASYNCHRONOUS_COMMIT = func.set_config("synchronous_commit", "off", true())
"""On PostgreSQL the commit of a statement that returns this waits for no disk, and for no other server."""


@dataclass(slots=True, kw_only=True)
class Claim:
    """A run of a delivery that may go on.

    Attributes:
        worker: whose run it is; with the number it tells this run from any other, also from one that a crash of the
            database has forgotten.
        attempt: number of the run, which alone may close it.
        retries: runs before that failed, as Celery counts them.
        payload: what the handler is called with, as the codec wrote it.
        closed: whether its row is closed, as the handler's own transaction does it.
    """

    emission: str
    handler: str
    worker: str
    attempt: int
    retries: int
    promise: str
    payload: str
    closed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a delivery is not run.

    Attributes:
        state: what it is in; None when there is no such delivery.
    """

    state: State | None


def claim(emission: str, handler: str, worker: str) -> Claim | Refusal:
    """Start a run, if the delivery waits for one; counted before it begins.

    It need not outlive a crash of the database: a delivery whose run is forgotten is still queued, and runs again.

    Raises:
        OutboxOutdated: the tables are not there, or of a version that this library cannot use.
    """
    ensure_current()
    emission = to_storable(emission)  # which a message names, and may be anything
    who = {"of_emission": emission, "of_handler": handler, "by": worker}
    with autocommit_connection() as connection:
        row = _START.execute(connection, who).one_or_none()
        if row is None:
            return _refusal(connection, emission, handler)
    return Claim(
        emission=emission,
        handler=handler,
        worker=worker,
        attempt=row.attempts,
        retries=row.retries,
        promise=row.promise,
        payload=row.payload or "",
    )


def _start_statement(dialect: str) -> ReturningUpdate[Any]:
    c = deliveries.c
    fresh = or_(c.expires_at.is_(None), c.expires_at > now())
    begun = {"state": RUNNING, "attempts": c.attempts + 1, "publications": 0, "started_at": now()}
    mine = (
        update(deliveries)
        .where(_has_key(*_KEY_PARAMETERS), c.state == QUEUED, fresh)
        .values(**begun, worker=bindparam("by"))
    )
    unhurried = [_ASYNCHRONOUS_COMMIT] if dialect == "postgresql" else []
    return mine.returning(c.attempts, c.retries, c.promise, _payload_subquery().label("payload"), *unhurried)


@cache
def _update_of_claim() -> Update:
    """The run of a claim, while nobody else has taken over; made once, because making it costs more than executing."""
    c = deliveries.c
    this = (c.attempts == bindparam("of_attempt")) & (c.worker == bindparam("of_worker"))
    return update(deliveries).where(_has_key(*_KEY_PARAMETERS), this, c.closed_at.is_(None))


def _finish_statement(_dialect: str) -> Update:
    return _update_of_claim().values(state=DONE, closed_at=now(), error=None)


_START, _FINISH = CachedStatement(_start_statement), CachedStatement(_finish_statement)


def _payload_subquery() -> ScalarSelect[str | None]:
    """The payload of the delivery that a statement changes."""
    mine = select(payload_column()).select_from(emissions).where(emissions.c.id == deliveries.c.emission)
    return mine.correlate(deliveries).scalar_subquery()


def _refusal(connection: Connection, emission: str, handler: str) -> Refusal:
    mine, overdue = _has_key(emission, handler), (deliveries.c.state == QUEUED) & (deliveries.c.expires_at <= now())
    connection.execute(update(deliveries).where(mine, overdue).values(expired_values()))
    return Refusal(state=connection.scalar(select(deliveries.c.state).where(mine)))


def dead_letter_without_row(emission: str, handler: str, task_id: str, facts: dict[str, Any], error: str) -> None:
    """Keep a message that has no row as a dead letter, so that it is seen."""
    known = to_storable(emission)[:MAX_ID_CHARACTERS]
    with write_connection() as connection:
        if connection.scalar(select(emissions.c.id).where(emissions.c.id == known)) is None:
            connection.execute(insert(emissions).values(id=known, **_emission_columns(**facts)))
        row = {"emission": known, "handler": handler, "id": to_storable_id(task_id), "queue": "", "mode": "snapshot"}
        connection.execute(
            insert(deliveries).values(**row, promise="at-least-once", due_at=IMMEDIATELY, **dead_values(error))
        )


def _emission_columns(*, event: str | None, sender: str, root: str | None, parent: str | None) -> ColumnValues:
    """What a message says of its emission, as its row can keep it."""
    names = {"event": event and to_storable(event)[:MAX_NAME_CHARACTERS], "sender": to_storable(sender)}
    return {**names, "root": to_storable_id(root), "parent": to_storable_id(parent)}


def finish(run: Claim, connection: Connection | None = None) -> None:
    """Close a delivery as done, in the transaction of `connection` or in one of its own.

    Raises:
        DeliveryLost: another run has taken over, or it was cancelled.
    """
    _close(run, _FINISH.execute, connection)


def reschedule(run: Claim, seconds: float, error: str) -> None:
    """Have it run again after so many seconds.

    Raises:
        DeliveryLost: another run has taken over, or it was cancelled.
    """
    _close(run, _close_with(retry_values(seconds, error)), None)


def dead_letter(run: Claim, error: str) -> None:
    """Make it a dead letter.

    Raises:
        DeliveryLost: another run has taken over, or it was cancelled.
    """
    _close(run, _close_with(dead_values(error)), None)


def record_losses(where: ColumnElement[bool], error: str) -> int:
    """Take back runs whose process is dead; a delivery that loses too many of them is dead itself.

    Returns:
        How many were taken back.
    """
    losses = deliveries.c.losses + 1
    state = waiting_or_dead_values(losses >= MAX_LOSSES, IMMEDIATELY, error)
    values = {**RUN_AGAIN, **state, "losses": losses, **history_values(error)}
    return _write(update(deliveries).where(is_unlocked(is_open(RUNNING), where)).values(values))


def requeue_runs(worker: str) -> int:
    """Have runs that a stopping worker has cut short begin anew elsewhere; how many."""
    ensure_current()
    mine = is_unlocked(is_open(RUNNING), is_run_of_worker(worker))
    again = update(deliveries).where(mine).values(**RUN_AGAIN, **history_values("cut short by a worker that stopped"))
    return _write(again)


def undo_claim(emission: str, handler: str, worker: str) -> None:
    """Undo a claim of this thread whose outcome it does not know."""
    mine = update(deliveries).where(is_run_in(emission, handler, worker), deliveries.c.state == RUNNING)
    _write(mine.values(state=QUEUED))


def record_timeout(emission: str, handler: str, process: str, seconds: float | None, error: str) -> None:
    """Close a run that was ended for taking too long: to run again after so many seconds, or never."""
    values = dead_values(error) if seconds is None else retry_values(seconds, error)
    mine = update(deliveries).where(is_run_in(emission, handler, process), deliveries.c.state == RUNNING)
    _write(mine.values(values))


def requeue_unknown(emission: str, handler: str, most: int, error: str) -> None:
    """A worker that does not know the handler has taken the message: publish it again after a while, so many times."""
    c = deliveries.c
    values = waiting_or_dead_values(c.publications >= most, now() + lease_seconds(), error)
    _write(update(deliveries).where(_has_key(emission, handler), c.state == QUEUED).values(values))


def running_attempts(worker: str) -> set[tuple[str, int]]:
    """Id and attempt of each run in the processes of a worker."""
    c = deliveries.c
    with engine().connect() as connection:
        found = connection.execute(select(c.id, c.attempts).where(is_open(RUNNING), is_run_of_worker(worker)))
        return {(row.id, row.attempts) for row in found}


def is_attempt(task_id: str, attempt: int) -> ColumnElement[bool]:
    """That run of the delivery with this id."""
    return (deliveries.c.id == task_id) & (deliveries.c.attempts == attempt)


def is_run_in(emission: str, handler: str, process: str) -> ColumnElement[bool]:
    """The run of this delivery by those whose name begins so."""
    return and_(_has_key(emission, handler), deliveries.c.worker.startswith(process, autoescape=True))


def is_run_of_worker(worker: str) -> ColumnElement[bool]:
    """All runs in the processes of a worker."""
    return deliveries.c.worker.startswith(f"{worker}/", autoescape=True)


def _write(statement: Update) -> int:
    with write_connection() as connection:
        return connection.execute(statement).rowcount


def _close_with(values: Mapping[str, Any]) -> ExecuteClosing:
    return lambda connection, which: connection.execute(_update_of_claim().values(values), which)


def _close(run: Claim, closing: ExecuteClosing, connection: Connection | None) -> None:
    key = {"of_emission": run.emission, "of_handler": run.handler}
    which = {**key, "of_attempt": run.attempt, "of_worker": run.worker}
    with autocommit_connection() if connection is None else nullcontext(connection) as used:
        closed = closing(used, which).rowcount
    if not closed:
        raise DeliveryLost(run.handler, run.emission, run.attempt)


def _has_key(emission: str | BindParameter[str], handler: str | BindParameter[str]) -> ColumnElement[bool]:
    return and_(deliveries.c.emission == emission, deliveries.c.handler == handler)
