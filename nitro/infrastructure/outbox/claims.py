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
from nitro.infrastructure.database import Prepared, engine, writing, writing_once
from nitro.infrastructure.outbox.rows import lease, payload
from nitro.infrastructure.outbox.states import AGAIN, AT_ONCE, Values, dead, expired, noted, retried, waiting_unless
from nitro.infrastructure.outbox.tables import (
    DONE,
    NAME,
    QUEUED,
    RUNNING,
    State,
    deliveries,
    emissions,
    free,
    is_open,
    now,
)
from nitro.infrastructure.outbox.texts import ID, identity, storable
from nitro.infrastructure.outbox.versions import ensure_current

MOST_LOSSES = 5
"""Runs whose process died, after which a delivery is dead: it is taken for what kills them."""


Closing = Callable[[Connection, dict[str, object]], CursorResult[Any]]
"""Executes what closes a run, or puts it off."""

_KEY: tuple[BindParameter[str], BindParameter[str]] = (bindparam("of_emission"), bindparam("of_handler"))


_UNHURRIED = func.set_config("synchronous_commit", "off", true())
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
    emission = storable(emission)  # which a message names, and may be anything
    who = {"of_emission": emission, "of_handler": handler, "by": worker}
    with writing_once() as connection:
        row = _START.execute(connection, who).one_or_none()
        if row is None:
            return _refuse(connection, emission, handler)
    return Claim(
        emission=emission,
        handler=handler,
        worker=worker,
        attempt=row.attempts,
        retries=row.retries,
        promise=row.promise,
        payload=row.payload or "",
    )


def _start(dialect: str) -> ReturningUpdate[Any]:
    c = deliveries.c
    fresh = or_(c.expires_at.is_(None), c.expires_at > now())
    begun = {"state": RUNNING, "attempts": c.attempts + 1, "publications": 0, "started_at": now()}
    mine = update(deliveries).where(_is(*_KEY), c.state == QUEUED, fresh).values(**begun, worker=bindparam("by"))
    unhurried = [_UNHURRIED] if dialect == "postgresql" else []
    return mine.returning(c.attempts, c.retries, c.promise, _payload().label("payload"), *unhurried)


@cache
def _mine() -> Update:
    """The run of a claim, while nobody else has taken over; made once, because making it costs more than executing."""
    c = deliveries.c
    this = (c.attempts == bindparam("of_attempt")) & (c.worker == bindparam("of_worker"))
    return update(deliveries).where(_is(*_KEY), this, c.closed_at.is_(None))


def _finish(_dialect: str) -> Update:
    return _mine().values(state=DONE, closed_at=now(), error=None)


_START, _FINISH = Prepared(_start), Prepared(_finish)


def _payload() -> ScalarSelect[str | None]:
    """The payload of the delivery that a statement changes."""
    mine = select(payload()).select_from(emissions).where(emissions.c.id == deliveries.c.emission)
    return mine.correlate(deliveries).scalar_subquery()


def _refuse(connection: Connection, emission: str, handler: str) -> Refusal:
    mine, overdue = _is(emission, handler), (deliveries.c.state == QUEUED) & (deliveries.c.expires_at <= now())
    connection.execute(update(deliveries).where(mine, overdue).values(expired()))
    return Refusal(state=connection.scalar(select(deliveries.c.state).where(mine)))


def park(emission: str, handler: str, task_id: str, facts: dict[str, Any], error: str) -> None:
    """Keep a message that has no row as a dead letter, so that it is seen."""
    known = storable(emission)[:ID]
    with writing() as connection:
        if connection.scalar(select(emissions.c.id).where(emissions.c.id == known)) is None:
            connection.execute(insert(emissions).values(id=known, **_named(**facts)))
        row = {"emission": known, "handler": handler, "id": identity(task_id), "queue": "", "mode": "snapshot"}
        connection.execute(insert(deliveries).values(**row, promise="at-least-once", due_at=AT_ONCE, **dead(error)))


def _named(*, event: str | None, sender: str, root: str | None, parent: str | None) -> Values:
    """What a message says of its emission, as its row can keep it."""
    names = {"event": event and storable(event)[:NAME], "sender": storable(sender)}
    return {**names, "root": identity(root), "parent": identity(parent)}


def finish(run: Claim, connection: Connection | None = None) -> None:
    """Close a delivery as done, in the transaction of `connection` or in one of its own.

    Raises:
        DeliveryLost: another run has taken over, or it was cancelled.
    """
    _close(run, _FINISH.execute, connection)


def put_off(run: Claim, seconds: float, error: str) -> None:
    """Have it run again after so many seconds.

    Raises:
        DeliveryLost: another run has taken over, or it was cancelled.
    """
    _close(run, _closing(retried(seconds, error)), None)


def bury(run: Claim, error: str) -> None:
    """Make it a dead letter.

    Raises:
        DeliveryLost: another run has taken over, or it was cancelled.
    """
    _close(run, _closing(dead(error)), None)


def lose(where: ColumnElement[bool], error: str) -> int:
    """Take back runs whose process is dead; a delivery that loses too many of them is dead itself.

    Returns:
        How many were taken back.
    """
    losses = deliveries.c.losses + 1
    values = {**AGAIN, **waiting_unless(losses >= MOST_LOSSES, AT_ONCE, error), "losses": losses, **noted(error)}
    with writing() as connection:
        return connection.execute(update(deliveries).where(free(is_open(RUNNING), where)).values(values)).rowcount


def give_back(worker: str) -> int:
    """Have runs that a stopping worker has cut short begin anew elsewhere; how many."""
    ensure_current()
    mine = free(is_open(RUNNING), runs_of(worker))
    again = update(deliveries).where(mine).values(**AGAIN, **noted("cut short by a worker that stopped"))
    with writing() as connection:
        return connection.execute(again).rowcount


def unclaim(emission: str, handler: str, worker: str) -> None:
    """Undo a claim of this thread whose outcome it does not know."""
    mine = update(deliveries).where(run_in(emission, handler, worker), deliveries.c.state == RUNNING)
    with writing() as connection:
        connection.execute(mine.values(state=QUEUED))


def overrun(emission: str, handler: str, process: str, seconds: float | None, error: str) -> None:
    """Close a run that was ended for taking too long: to run again after so many seconds, or never."""
    values = dead(error) if seconds is None else retried(seconds, error)
    mine = update(deliveries).where(run_in(emission, handler, process), deliveries.c.state == RUNNING)
    with writing() as connection:
        connection.execute(mine.values(values))


def misdirected(emission: str, handler: str, most: int, error: str) -> None:
    """A worker that does not know the handler has taken the message: publish it again after a while, so many times."""
    c = deliveries.c
    values = waiting_unless(c.publications >= most, now() + lease(), error)
    with writing() as connection:
        connection.execute(update(deliveries).where(_is(emission, handler), c.state == QUEUED).values(values))


def running(worker: str) -> set[tuple[str, int]]:
    """Id and attempt of each run in the processes of a worker."""
    c = deliveries.c
    with engine().connect() as connection:
        found = connection.execute(select(c.id, c.attempts).where(is_open(RUNNING), runs_of(worker)))
        return {(row.id, row.attempts) for row in found}


def attempt_of(task_id: str, attempt: int) -> ColumnElement[bool]:
    """That run of the delivery with this id."""
    return (deliveries.c.id == task_id) & (deliveries.c.attempts == attempt)


def run_in(emission: str, handler: str, process: str) -> ColumnElement[bool]:
    """The run of this delivery by those whose name begins so."""
    return and_(_is(emission, handler), deliveries.c.worker.startswith(process, autoescape=True))


def runs_of(worker: str) -> ColumnElement[bool]:
    """All runs in the processes of a worker."""
    return deliveries.c.worker.startswith(f"{worker}/", autoescape=True)


def _closing(values: Mapping[str, Any]) -> Closing:
    return lambda connection, which: connection.execute(_mine().values(values), which)


def _close(run: Claim, closing: Closing, connection: Connection | None) -> None:
    which = {
        "of_emission": run.emission,
        "of_handler": run.handler,
        "of_attempt": run.attempt,
        "of_worker": run.worker,
    }
    with writing_once() if connection is None else nullcontext(connection) as used:
        closed = closing(used, which).rowcount
    if not closed:
        raise DeliveryLost(run.handler, run.emission, run.attempt)


def _is(emission: str | BindParameter[str], handler: str | BindParameter[str]) -> ColumnElement[bool]:
    return and_(deliveries.c.emission == emission, deliveries.c.handler == handler)
