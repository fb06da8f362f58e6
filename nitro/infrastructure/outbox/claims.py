"""Claims of deliveries by workers: a claim starts a run, and only the latest claim may close or reschedule its row."""

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
"""Runs with a dead process after which a delivery becomes a dead letter: its handler probably kills the processes."""


ExecuteClosing = Callable[[Connection, dict[str, object]], CursorResult[Any]]
"""Executes the statement that closes or reschedules a run."""

_KEY_PARAMETERS: tuple[BindParameter[str], BindParameter[str]] = (bindparam("of_emission"), bindparam("of_handler"))

_ASYNCHRONOUS_COMMIT = func.set_config("synchronous_commit", "off", true())
"""Sets `synchronous_commit=off` for the transaction, on PostgreSQL: its commit does not wait for the disk."""


@dataclass(slots=True, kw_only=True)
class Claim:
    """A run of a delivery.

    Attributes:
        worker: worker, process and thread of the run. Together with `attempt` it identifies the run, also when a crash
            of the database lost the claim and the number is used twice.
        attempt: number of the run.
        retries: earlier runs that failed, as Celery counts them.
        payload: sender and arguments, as the codec wrote them.
        closed: whether the handler's own transaction has closed the row.
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
    """The reason why a delivery does not run.

    Attributes:
        state: its state; None when it has no row.
    """

    state: State | None


def claim(emission: str, handler: str, worker: str) -> Claim | Refusal:
    """Starts a run of a queued delivery, and counts the attempt.

    The claim need not survive a crash of the database: without it the delivery is still queued, and runs again.

    Raises:
        OutboxOutdated: the tables are missing, or of a version that this library cannot use.
    """
    ensure_current()
    emission = to_storable(emission)  # a message may name any text
    parameters = {"of_emission": emission, "of_handler": handler, "by": worker}
    with autocommit_connection() as connection:
        row = _START.execute(connection, parameters).one_or_none()
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
    not_expired = or_(c.expires_at.is_(None), c.expires_at > now())
    running_values = {"state": RUNNING, "attempts": c.attempts + 1, "publications": 0, "started_at": now()}
    start = (
        update(deliveries)
        .where(_has_key(*_KEY_PARAMETERS), c.state == QUEUED, not_expired)
        .values(**running_values, worker=bindparam("by"))
    )
    commit_columns = [_ASYNCHRONOUS_COMMIT] if dialect == "postgresql" else []
    return start.returning(c.attempts, c.retries, c.promise, _payload_subquery().label("payload"), *commit_columns)


@cache
def _update_of_claim() -> Update:
    """Returns the UPDATE of a claim's row, unless a later claim exists. To build it costs more than to execute it."""
    c = deliveries.c
    is_claim = (c.attempts == bindparam("of_attempt")) & (c.worker == bindparam("of_worker"))
    return update(deliveries).where(_has_key(*_KEY_PARAMETERS), is_claim, c.closed_at.is_(None))


def _finish_statement(_dialect: str) -> Update:
    return _update_of_claim().values(state=DONE, closed_at=now(), error=None)


_START, _FINISH = CachedStatement(_start_statement), CachedStatement(_finish_statement)


def _payload_subquery() -> ScalarSelect[str | None]:
    """Returns the payload of the delivery that the enclosing statement changes."""
    payload = select(payload_column()).select_from(emissions).where(emissions.c.id == deliveries.c.emission)
    return payload.correlate(deliveries).scalar_subquery()


def _refusal(connection: Connection, emission: str, handler: str) -> Refusal:
    c = deliveries.c
    has_key, is_overdue = _has_key(emission, handler), (c.state == QUEUED) & (c.expires_at <= now())
    connection.execute(update(deliveries).where(has_key, is_overdue).values(expired_values()))
    return Refusal(state=connection.scalar(select(deliveries.c.state).where(has_key)))


def dead_letter_without_row(emission: str, handler: str, task_id: str, facts: dict[str, Any], error: str) -> None:
    """Stores a message that has no row as a dead letter, so that operators see it."""
    emission_id = to_storable(emission)[:MAX_ID_CHARACTERS]
    with write_connection() as connection:
        if connection.scalar(select(emissions.c.id).where(emissions.c.id == emission_id)) is None:
            connection.execute(insert(emissions).values(id=emission_id, **_emission_columns(**facts)))
        key = {"emission": emission_id, "handler": handler, "id": to_storable_id(task_id)}
        values = {"queue": "", "mode": "snapshot", "promise": "at-least-once", "due_at": IMMEDIATELY}
        connection.execute(insert(deliveries).values(**key, **values, **dead_values(error)))


def _emission_columns(*, event: str | None, sender: str, root: str | None, parent: str | None) -> ColumnValues:
    """Returns the columns of an emission from its message, in texts that the database can store."""
    names = {"event": event and to_storable(event)[:MAX_NAME_CHARACTERS], "sender": to_storable(sender)}
    return {**names, "root": to_storable_id(root), "parent": to_storable_id(parent)}


def finish(run: Claim, connection: Connection | None = None) -> None:
    """Closes a delivery as done, in the transaction of `connection` or in one of its own.

    Raises:
        DeliveryLost: another run has claimed the delivery, or it was cancelled.
    """
    _close(run, _FINISH.execute, connection)


def reschedule(run: Claim, seconds: float, error: str) -> None:
    """Reschedules the delivery of a run, to run again after so many seconds.

    Raises:
        DeliveryLost: another run has claimed the delivery, or it was cancelled.
    """
    _close(run, _close_with(retry_values(seconds, error)), None)


def dead_letter(run: Claim, error: str) -> None:
    """Makes the delivery of a run a dead letter.

    Raises:
        DeliveryLost: another run has claimed the delivery, or it was cancelled.
    """
    _close(run, _close_with(dead_values(error)), None)


def record_losses(where: ColumnElement[bool], error: str) -> int:
    """Requeues runs of dead processes, after `MAX_LOSSES` as dead letters, and returns their number."""
    losses = deliveries.c.losses + 1
    state = waiting_or_dead_values(losses >= MAX_LOSSES, IMMEDIATELY, error)
    values = {**RUN_AGAIN, **state, "losses": losses, **history_values(error)}
    return _write(update(deliveries).where(is_unlocked(is_open(RUNNING), where)).values(values))


def requeue_runs(worker: str) -> int:
    """Requeues the runs that a stopping worker has interrupted, and returns their number."""
    ensure_current()
    values = {**RUN_AGAIN, **history_values("cut short by a worker that stopped")}
    return _write(update(deliveries).where(is_unlocked(is_open(RUNNING), is_run_of_worker(worker))).values(values))


def undo_claim(emission: str, handler: str, worker: str) -> None:
    """Undoes a claim of this thread that may or may not have been committed."""
    is_claimed = is_run_in(emission, handler, worker) & (deliveries.c.state == RUNNING)
    _write(update(deliveries).where(is_claimed).values(state=QUEUED))


def record_timeout(emission: str, handler: str, process: str, seconds: float | None, error: str) -> None:
    """Closes a run that exceeded its time limit: to run again after so many seconds, or with None as a dead letter."""
    values = dead_values(error) if seconds is None else retry_values(seconds, error)
    is_claimed = is_run_in(emission, handler, process) & (deliveries.c.state == RUNNING)
    _write(update(deliveries).where(is_claimed).values(values))


def requeue_unknown(emission: str, handler: str, max_publications: int, error: str) -> None:
    """Requeues a delivery whose message reached a worker without its handler; at last makes it a dead letter."""
    c = deliveries.c
    values = waiting_or_dead_values(c.publications >= max_publications, now() + lease_seconds(), error)
    _write(update(deliveries).where(_has_key(emission, handler), c.state == QUEUED).values(values))


def running_attempts(worker: str) -> set[tuple[str, int]]:
    """Returns the task id and the attempt of each run in the processes of a worker."""
    c = deliveries.c
    with engine().connect() as connection:
        rows = connection.execute(select(c.id, c.attempts).where(is_open(RUNNING), is_run_of_worker(worker)))
        return {(row.id, row.attempts) for row in rows}


def is_attempt(task_id: str, attempt: int) -> ColumnElement[bool]:
    """Returns the condition for this attempt of the delivery with this task id."""
    return (deliveries.c.id == task_id) & (deliveries.c.attempts == attempt)


def is_run_in(emission: str, handler: str, process: str) -> ColumnElement[bool]:
    """Returns the condition for the run of this delivery by a runner whose id starts with `process`."""
    return and_(_has_key(emission, handler), deliveries.c.worker.startswith(process, autoescape=True))


def is_run_of_worker(worker: str) -> ColumnElement[bool]:
    """Returns the condition for all runs in the processes of a worker."""
    return deliveries.c.worker.startswith(f"{worker}/", autoescape=True)


def _write(statement: Update) -> int:
    with write_connection() as connection:
        return connection.execute(statement).rowcount


def _close_with(values: Mapping[str, Any]) -> ExecuteClosing:
    return lambda connection, parameters: connection.execute(_update_of_claim().values(values), parameters)


def _close(run: Claim, closing: ExecuteClosing, connection: Connection | None) -> None:
    key = {"of_emission": run.emission, "of_handler": run.handler}
    parameters = {**key, "of_attempt": run.attempt, "of_worker": run.worker}
    with autocommit_connection() if connection is None else nullcontext(connection) as used:
        closed = closing(used, parameters).rowcount
    if not closed:
        raise DeliveryLost(run.handler, run.emission, run.attempt)


def _has_key(emission: str | BindParameter[str], handler: str | BindParameter[str]) -> ColumnElement[bool]:
    return and_(deliveries.c.emission == emission, deliveries.c.handler == handler)
