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

from nitro.infrastructure.database import engine, write_connection
from nitro.infrastructure.failpoints import failpoint
from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.offload.destinations import expected_queue_or_default, is_queue
from nitro.infrastructure.offload.envelope import TRACKED_DELIVERIES, TaskMessage
from nitro.infrastructure.offload.publishing.queue import BatchStatus
from nitro.infrastructure.outbox.rows import (
    LEASE_SECONDS,
    MAX_LEASE_SECONDS,
    TASK_MESSAGE_COLUMNS,
    json_rows,
    lease_seconds,
    task_message_from_row,
)
from nitro.infrastructure.outbox.schema import (
    DONE,
    QUEUED,
    RUNNING,
    WAITING,
    deliveries,
    emissions,
    is_open,
    is_unlocked,
    now,
)
from nitro.infrastructure.outbox.states import (
    IMMEDIATELY,
    dead_values,
    expired_values,
    waiting_or_dead_values,
    waiting_values,
)

MAX_PUBLICATIONS = 60
"""Messages taken and never started, after which a delivery is dead: no worker that reads its queue knows it."""
RETRIES_PER_LEASE = 10
"""How much sooner than a message that was lost one is published again that may not have left: after 2 to 60 s."""
MAX_CHECK_INTERVAL_SECONDS = 60.0
"""Seconds after which at the latest a message that nobody has taken is looked after again."""
RECENT_DELIVERIES = 1000
"""Deliveries in which a started one is sought, to see how far the workers have come."""
EXPIRY_BATCH = 500
"""Deliveries that are closed at once because they have expired."""
NOT_PUBLISHED_PREFIX = "not published: "
UNKNOWN_OUTCOME_ERROR = "it may have been published, and may not be again"

logger = get_logger("nitro.outbox")

_c = deliveries.c


def has_due() -> bool:
    """Whether anything waits to be published; asked before the lock that taking it needs."""
    return _exists(_is_due())


def take_due(most: int, app: Celery | None = None) -> list[TaskMessage]:
    """Take so many deliveries that are due, the oldest first, and note them as queued.

    Nobody else takes them until their lease has run out.

    Args:
        app: its routes say into which queues they go; the current one unless given.
    """
    oldest = (
        select(*TASK_MESSAGE_COLUMNS, (_c.expires_at <= now()).label("overdue"))
        .select_from(deliveries.join(emissions))
        .where(_is_due())
        .order_by(_c.due_at, _c.emission)
        .limit(most)
        .with_for_update(of=deliveries, skip_locked=True)
    )
    with write_connection() as connection:
        rows = connection.execute(oldest).all()
        messages = [
            _with_current_queue(app or current_app(), task_message_from_row(row)) for row in rows if not row.overdue
        ]
        overdue = [(row.emission, row.handler) for row in rows if row.overdue]
        _store_queues(connection, messages, _queued_values())
        if overdue:
            connection.execute(update(deliveries).where(_has_key_in(connection, overdue)).values(expired_values()))
        failpoint("claiming")
    failpoint("claimed")
    return messages


def _with_current_queue(app: Celery, message: TaskMessage) -> TaskMessage:
    """Have a message name the queue that it goes to by today's routes."""
    try:
        message.queue = expected_queue_or_default(app, message)
    except Exception as error:  # noqa: BLE001  # publishing it raises the same, and its row says so
        logger.debug("no queue is found for %s: %s", message.handler, error)
    return message


def store_actual_queues(messages: Sequence[TaskMessage]) -> None:
    """Have the rows of messages that went into other queues than foreseen name those."""
    strayed = [message for message in messages if message.is_misrouted]
    if strayed:
        with write_connection() as connection:
            _store_queues(connection, strayed, {})
        for message in strayed:
            message.is_misrouted = False


def close_expired() -> int:
    """Close what has expired before it began, wherever its message is; how many.

    A message of it that comes to a worker later finds it closed. One that runs goes on.
    """
    overdue = _c.closed_at.is_(None) & (_c.expires_at <= now()) & (_c.state != RUNNING)
    number = 0
    while _exists(overdue) and (some := _update_where(is_unlocked(overdue, most=EXPIRY_BATCH), expired_values())):
        number += some
    return number


def requeue_unconfirmed(messages: Sequence[TaskMessage], error: BaseException, status: BatchStatus) -> None:
    """Have what was noted as queued and has not surely left published again.

    What was certainly not sent is due at once. Otherwise it may be to blame itself, or lie in the queue already: it is
    tried later and later, and is dead in the end.
    """
    told = f"{NOT_PUBLISHED_PREFIX}{type(error).__name__}: {error}"
    if status == "unsent":
        again = {**waiting_values(IMMEDIATELY, told), "publications": _c.publications - 1}
    else:
        again = waiting_or_dead_values(
            _c.publications >= MAX_PUBLICATIONS, now() + lease_seconds() / RETRIES_PER_LEASE, told
        )
    _update_queued(messages, again)


def close_untracked(messages: Sequence[TaskMessage], error: BaseException | None) -> None:
    """Close what has no handler's end to wait for: untracked deliveries whose message has left, or may have."""
    done = {"state": DONE, "closed_at": now(), "error": None}
    _update_queued(messages, done if error is None else dead_values(f"{UNKNOWN_OUTCOME_ERROR}: {error}"))


def requeue_lost(sizes: Callable[[Iterable[str]], Mapping[str, int]]) -> int:
    """Find messages that were lost among those whose lease has run out; how many will be published again.

    A message is lost when its queue is empty, or when a worker has started one that was published after it. Otherwise
    it only waits in a long queue, and its lease is extended.

    Args:
        sizes: asks the broker how many messages are ready in each queue.
    """
    over = or_(_c.due_at <= now(), _c.due_at > now() + 2 * MAX_LEASE_SECONDS)
    asked = select(_c.queue).where(is_open(QUEUED), over).distinct()
    with engine().connect() as connection:
        queues = list(connection.scalars(asked))
    named = [queue for queue in queues if is_queue(queue)]
    ready = sizes(named) if named else {}
    return sum(_requeue_lost_of_queue(queue, over, _is_probably_lost(queue, ready)) for queue in queues)


def has_long_queued(queues: Sequence[str]) -> bool:
    """Whether a message in one of these queues was published longer ago than its first lease."""
    long_ago = _c.published_at < now() - LEASE_SECONDS
    return _exists(is_open(QUEUED), _c.queue.in_(queues), long_ago)


def _is_probably_lost(queue: str, ready: Mapping[str, int]) -> ColumnElement[bool]:
    """Whether its queue is empty; where the broker cannot be asked about it, whether it is there for very long."""
    return literal(not ready[queue]) if is_queue(queue) else _c.published_at + MAX_LEASE_SECONDS < now()


def _requeue_lost_of_queue(queue: str, over: ColumnElement[bool], seems_lost: ColumnElement[bool]) -> int:
    mine = (is_open(QUEUED), _c.queue == queue, over)
    lost = seems_lost | (_c.published_at + LEASE_SECONDS < _last_started_publication(queue))
    last = (_c.promise == "at-most-once") | (_c.publications >= MAX_PUBLICATIONS)
    never = f"published {MAX_PUBLICATIONS} times and never started: does a worker of queue {queue} know its handler?"
    why = case((_c.promise == "at-most-once", UNKNOWN_OUTCOME_ERROR), else_=never)
    with write_connection() as connection:
        connection.execute(update(deliveries).where(is_unlocked(*mine, lost, last)).values(dead_values(why)))
        again = update(deliveries).where(is_unlocked(*mine, lost)).values(state=WAITING, due_at=IMMEDIATELY)
        found = connection.execute(again).rowcount
        connection.execute(update(deliveries).where(is_unlocked(*mine)).values(due_at=_next_check_at()))
    return found


def _last_started_publication(queue: str) -> ColumnElement[float]:
    """When the latest message of a queue was published that a worker has started, as far as it is cheap to know."""
    running = select(_c.published_at, _c.started_at, _c.queue).where(is_open(RUNNING))
    recent = select(_c.published_at, _c.started_at, _c.queue).order_by(_c.emission.desc()).limit(RECENT_DELIVERIES)
    started = union_all(running, select(recent.subquery())).subquery()
    latest = select(func.max(started.c.published_at)).where(started.c.queue == queue, started.c.started_at.is_not(None))
    return func.coalesce(latest.scalar_subquery(), 0.0)


def _exists(*conditions: ColumnElement[bool]) -> bool:
    """Whether a delivery meets all conditions; asked without the lock that changing it needs."""
    with engine().connect() as connection:
        return connection.scalar(select(literal(1)).select_from(deliveries).where(*conditions).limit(1)) is not None


def _update_where(which: ColumnElement[bool], values: Mapping[str, Any]) -> int:
    with write_connection() as connection:
        return connection.execute(update(deliveries).where(which).values(values)).rowcount


def _is_due() -> ColumnElement[bool]:
    return is_open(WAITING) & (_c.due_at <= now())


def _queued_values() -> dict[str, Any]:
    anew = {"published_at": now(), "started_at": None, "publications": _c.publications + 1}
    error = case((_c.error.startswith(NOT_PUBLISHED_PREFIX), None), else_=_c.error)  # of a run it is still the last one
    return {"state": QUEUED, "due_at": _next_check_at(), "error": error, **anew}


def _next_check_at() -> ColumnElement[float]:
    """When a message that nobody has taken is looked after; soon also with a broker that loses its data repeatedly."""
    return now() + case(
        (lease_seconds() > MAX_CHECK_INTERVAL_SECONDS, MAX_CHECK_INTERVAL_SECONDS), else_=lease_seconds()
    )


def _update_queued(messages: Sequence[TaskMessage], values: Mapping[str, Any]) -> None:
    """Change those of these deliveries that are queued still."""
    if messages:
        keys = ((message.envelope.emission, message.handler) for message in messages)
        with write_connection() as connection:
            mine = update(deliveries).where(_has_key_in(connection, keys), _c.state == QUEUED)
            connection.execute(mine.values(values))


def _store_queues(connection: Connection, messages: Sequence[TaskMessage], values: Mapping[str, Any]) -> None:
    """Change the rows of these messages, and have each name its queue."""
    if messages:
        columns = {name: _c[name].type for name in ("emission", "handler", "queue")}
        facts = ((message.envelope.emission, message.handler, message.queue) for message in messages)
        rows = [dict(zip(columns, each, strict=True)) for each in facts]
        new = json_rows(connection.dialect.name, bindparam(None, json.dumps(rows)), columns)
        mine = (_c.emission == new.c.emission) & (_c.handler == new.c.handler)
        connection.execute(update(deliveries).where(mine).values({**values, "queue": new.c.queue}))


def _has_key_in(connection: Connection, keys: Iterable[tuple[str, str]]) -> ColumnElement[bool]:
    """Deliveries with these keys."""
    columns = {"emission": _c.emission.type, "handler": _c.handler.type}
    rows = json.dumps([dict(zip(columns, key, strict=True)) for key in keys], ensure_ascii=False)
    wanted = json_rows(connection.dialect.name, bindparam(None, rows), columns)
    return tuple_(_c.emission, _c.handler).in_(select(wanted.c.emission, wanted.c.handler))


def only_untracked(messages: Iterable[TaskMessage]) -> list[TaskMessage]:
    """Those without a handler's end to wait for."""
    return [message for message in messages if message.delivery not in TRACKED_DELIVERIES]
