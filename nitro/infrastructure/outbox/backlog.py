"""The backlog: what a relay takes, looks after and puts back, in short transactions that no network waits in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery import Celery
from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from nitro.infrastructure.database import engine, writing
from nitro.infrastructure.failpoints import failpoint
from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.batch import Fate
from nitro.infrastructure.offload.destinations import foreseen_anew, is_queue
from nitro.infrastructure.offload.parcel import TRACKED, Parcel
from nitro.infrastructure.outbox.given import given
from nitro.infrastructure.outbox.rows import LEASE, LONGEST_LEASE, PARCEL, lease, parcel_of
from nitro.infrastructure.outbox.states import AT_ONCE, dead, expired, waiting, waiting_unless
from nitro.infrastructure.outbox.tables import (
    DONE,
    QUEUED,
    RUNNING,
    WAITING,
    deliveries,
    emissions,
    free,
    is_open,
    now,
)

MOST_PUBLICATIONS = 60
"""Messages taken and never started, after which a delivery is dead: no worker that reads its queue knows it."""
TRIES_A_LEASE = 10
"""How much sooner than a message that was lost one is published again that may not have left: after 2 to 60 s."""
LONGEST_LOOK = 60.0
"""Seconds after which at the latest a message that nobody has taken is looked after again."""
RECENT = 1000
"""Deliveries in which a started one is sought, to see how far the workers have come."""
MOST_EXPIRED = 500
"""Deliveries that are closed at once because they have expired."""
NOT_PUBLISHED = "not published: "
MAY_BE_PUBLISHED = "it may have been published, and may not be again"

logger = logger_named("nitro.outbox")

_c = deliveries.c


def due() -> bool:
    """Whether anything waits to be published; asked before the lock that taking it needs."""
    return _is_any(_waits())


def take(most: int, app: Celery | None = None) -> list[Parcel]:
    """Take so many deliveries that are due, the oldest first, and note them as queued.

    Nobody else takes them until their lease has run out.

    Args:
        app: its routes say into which queues they go; the current one unless given.
    """
    oldest = (
        select(*PARCEL, (_c.expires_at <= now()).label("overdue"))
        .select_from(deliveries.join(emissions))
        .where(_waits())
        .order_by(_c.due_at, _c.emission)
        .limit(most)
        .with_for_update(of=deliveries, skip_locked=True)
    )
    with writing() as connection:
        rows = connection.execute(oldest).all()
        parcels = [_placed(app or current_app(), parcel_of(row)) for row in rows if not row.overdue]
        overdue = [(row.emission, row.handler) for row in rows if row.overdue]
        _place(connection, parcels, _queued())
        if overdue:
            connection.execute(update(deliveries).where(_among(connection, overdue)).values(expired()))
        failpoint("claiming")
    failpoint("claimed")
    return parcels


def _placed(app: Celery, parcel: Parcel) -> Parcel:
    """Have a parcel name the queue that it goes to by today's routes."""
    try:
        parcel.queue = foreseen_anew(app, parcel)
    except Exception as error:  # noqa: BLE001  # publishing it raises the same, and its row says so
        logger.debug("no queue is found for %s: %s", parcel.handler, error)
    return parcel


def relocate(parcels: Sequence[Parcel]) -> None:
    """Have the rows of messages that went into other queues than foreseen name those."""
    strayed = [parcel for parcel in parcels if parcel.strayed]
    if strayed:
        with writing() as connection:
            _place(connection, strayed, {})
        for parcel in strayed:
            parcel.strayed = False


def expire() -> int:
    """Close what has expired before it began, wherever its message is; how many.

    A message of it that comes to a worker later finds it closed. One that runs goes on.
    """
    overdue = _c.closed_at.is_(None) & (_c.expires_at <= now()) & (_c.state != RUNNING)
    number = 0
    while _is_any(overdue) and (some := _update(free(overdue, most=MOST_EXPIRED), expired())):
        number += some
    return number


def put_back(parcels: Sequence[Parcel], error: BaseException, fate: Fate) -> None:
    """Have what was noted as queued and has not surely left published again.

    What was certainly not sent is due at once. Otherwise it may be to blame itself, or lie in the queue already: it is
    tried later and later, and is dead in the end.
    """
    told = f"{NOT_PUBLISHED}{type(error).__name__}: {error}"
    if fate == "unsent":
        again = {**waiting(AT_ONCE, told), "publications": _c.publications - 1}
    else:
        again = waiting_unless(_c.publications >= MOST_PUBLICATIONS, now() + lease() / TRIES_A_LEASE, told)
    _update_queued(parcels, again)


def settle(parcels: Sequence[Parcel], error: BaseException | None) -> None:
    """Close what has no handler's end to wait for: untracked deliveries whose message has left, or may have."""
    done = {"state": DONE, "closed_at": now(), "error": None}
    _update_queued(parcels, done if error is None else dead(f"{MAY_BE_PUBLISHED}: {error}"))


def look_after(sizes: Callable[[Iterable[str]], Mapping[str, int]]) -> int:
    """Find messages that were lost among those whose lease has run out; how many will be published again.

    A message is lost when its queue is empty, or when a worker has started one that was published after it. Otherwise
    it only waits in a long queue, and its lease is extended.

    Args:
        sizes: asks the broker how many messages are ready in each queue.
    """
    over = or_(_c.due_at <= now(), _c.due_at > now() + 2 * LONGEST_LEASE)
    asked = select(_c.queue).where(is_open(QUEUED), over).distinct()
    with engine().connect() as connection:
        queues = list(connection.scalars(asked))
    named = [queue for queue in queues if is_queue(queue)]
    ready = sizes(named) if named else {}
    return sum(_look_after(queue, over, _seems_lost(queue, ready)) for queue in queues)


def waits_long(queues: Sequence[str]) -> bool:
    """Whether a message in one of these queues was published longer ago than its first lease."""
    long_ago = _c.published_at < now() - LEASE
    return _is_any(is_open(QUEUED), _c.queue.in_(queues), long_ago)


def _seems_lost(queue: str, ready: Mapping[str, int]) -> ColumnElement[bool]:
    """Whether its queue is empty; where the broker cannot be asked about it, whether it is there for very long."""
    return literal(not ready[queue]) if is_queue(queue) else _c.published_at + LONGEST_LEASE < now()


def _look_after(queue: str, over: ColumnElement[bool], seems_lost: ColumnElement[bool]) -> int:
    mine = (is_open(QUEUED), _c.queue == queue, over)
    lost = seems_lost | (_c.published_at + LEASE < _frontier(queue))
    last = (_c.promise == "at-most-once") | (_c.publications >= MOST_PUBLICATIONS)
    never = f"published {MOST_PUBLICATIONS} times and never started: does a worker of queue {queue} know its handler?"
    why = case((_c.promise == "at-most-once", MAY_BE_PUBLISHED), else_=never)
    with writing() as connection:
        connection.execute(update(deliveries).where(free(*mine, lost, last)).values(dead(why)))
        again = update(deliveries).where(free(*mine, lost)).values(state=WAITING, due_at=AT_ONCE)
        found = connection.execute(again).rowcount
        connection.execute(update(deliveries).where(free(*mine)).values(due_at=_looked_after_at()))
    return found


def _frontier(queue: str) -> ColumnElement[float]:
    """When the latest message of a queue was published that a worker has started, as far as it is cheap to know."""
    running = select(_c.published_at, _c.started_at, _c.queue).where(is_open(RUNNING))
    recent = select(_c.published_at, _c.started_at, _c.queue).order_by(_c.emission.desc()).limit(RECENT)
    started = union_all(running, select(recent.subquery())).subquery()
    latest = select(func.max(started.c.published_at)).where(started.c.queue == queue, started.c.started_at.is_not(None))
    return func.coalesce(latest.scalar_subquery(), 0.0)


def _is_any(*conditions: ColumnElement[bool]) -> bool:
    """Whether a delivery meets all conditions; asked without the lock that changing it needs."""
    with engine().connect() as connection:
        return connection.scalar(select(literal(1)).select_from(deliveries).where(*conditions).limit(1)) is not None


def _update(which: ColumnElement[bool], values: Mapping[str, Any]) -> int:
    with writing() as connection:
        return connection.execute(update(deliveries).where(which).values(values)).rowcount


def _waits() -> ColumnElement[bool]:
    return is_open(WAITING) & (_c.due_at <= now())


def _queued() -> dict[str, Any]:
    anew = {"published_at": now(), "started_at": None, "publications": _c.publications + 1}
    error = case((_c.error.startswith(NOT_PUBLISHED), None), else_=_c.error)  # of a run it is still the last one
    return {"state": QUEUED, "due_at": _looked_after_at(), "error": error, **anew}


def _looked_after_at() -> ColumnElement[float]:
    """When a message that nobody has taken is looked after; soon also with a broker that loses its data repeatedly."""
    return now() + case((lease() > LONGEST_LOOK, LONGEST_LOOK), else_=lease())


def _update_queued(parcels: Sequence[Parcel], values: Mapping[str, Any]) -> None:
    """Change those of these deliveries that are queued still."""
    if parcels:
        keys = ((parcel.message.emission, parcel.handler) for parcel in parcels)
        with writing() as connection:
            mine = update(deliveries).where(_among(connection, keys), _c.state == QUEUED)
            connection.execute(mine.values(values))


def _place(connection: Connection, parcels: Sequence[Parcel], values: Mapping[str, Any]) -> None:
    """Change the rows of these parcels, and have each name the queue of its parcel."""
    if parcels:
        columns = {name: _c[name].type for name in ("emission", "handler", "queue")}
        facts = ((parcel.message.emission, parcel.handler, parcel.queue) for parcel in parcels)
        rows = [dict(zip(columns, each, strict=True)) for each in facts]
        new = given(connection.dialect.name, bindparam(None, json.dumps(rows)), columns)
        mine = (_c.emission == new.c.emission) & (_c.handler == new.c.handler)
        connection.execute(update(deliveries).where(mine).values({**values, "queue": new.c.queue}))


def _among(connection: Connection, keys: Iterable[tuple[str, str]]) -> ColumnElement[bool]:
    """Deliveries with these keys."""
    columns = {"emission": _c.emission.type, "handler": _c.handler.type}
    rows = json.dumps([dict(zip(columns, key, strict=True)) for key in keys], ensure_ascii=False)
    wanted = given(connection.dialect.name, bindparam(None, rows), columns)
    return tuple_(_c.emission, _c.handler).in_(select(wanted.c.emission, wanted.c.handler))


def untracked(parcels: Iterable[Parcel]) -> list[Parcel]:
    """Those without a handler's end to wait for."""
    return [parcel for parcel in parcels if parcel.promise not in TRACKED]
