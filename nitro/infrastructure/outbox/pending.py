"""Deliveries that are not closed: a relay takes due ones, requeues lost ones, and closes expired ones.

No transaction here stays open while the broker is asked.
"""

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
"""Publications without a run after which a delivery is a dead letter: no worker of its queue knows its handler."""
RETRIES_PER_LEASE = 10
"""Divisor of the lease: a publish with unknown outcome is retried after a tenth of it (2 to 60 s)."""
MAX_CHECK_INTERVAL_SECONDS = 60.0
"""Seconds between two checks of a message that no worker has started, at most."""
RECENT_DELIVERIES = 1000
"""The latest deliveries, among which the last started one is sought."""
EXPIRY_BATCH = 500
"""Expired deliveries that are closed by one statement."""
NOT_PUBLISHED_PREFIX = "not published: "
UNKNOWN_OUTCOME_ERROR = "it may have been published, and must not be published twice"

logger = get_logger("nitro.outbox")

_c = deliveries.c


def has_due() -> bool:
    """Whether a delivery is due; `take_due` locks rows, this does not."""
    return _exists(_is_due())


def take_due(limit: int, app: Celery | None = None) -> list[TaskMessage]:
    """Marks due deliveries as queued, the oldest first, and returns their messages.

    No other relay takes them until their lease has run out.

    Args:
        limit: number of deliveries at most.
        app: the app whose routes decide on the queues; the current app without it.
    """
    oldest = (
        select(*TASK_MESSAGE_COLUMNS, (_c.expires_at <= now()).label("overdue"))
        .select_from(deliveries.join(emissions))
        .where(_is_due())
        .order_by(_c.due_at, _c.emission)
        .limit(limit)
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
    """Sets the queue of a message by the current routes, and returns the message."""
    try:
        message.queue = expected_queue_or_default(app, message)
    except Exception as error:  # noqa: BLE001  # publishing raises the same error, which is stored in the row
        logger.debug("no queue is found for %s: %s", message.handler, error)
    return message


def store_actual_queues(messages: Sequence[TaskMessage]) -> None:
    """Stores the queues of messages that were sent to another queue than expected."""
    misrouted = [message for message in messages if message.is_misrouted]
    if misrouted:
        with write_connection() as connection:
            _store_queues(connection, misrouted, {})
        for message in misrouted:
            message.is_misrouted = False


def close_expired() -> int:
    """Closes deliveries that have expired and do not run, and returns their number.

    A worker that gets the message of a closed delivery refuses it. A running delivery goes on.
    """
    is_overdue = _c.closed_at.is_(None) & (_c.expires_at <= now()) & (_c.state != RUNNING)
    number = 0
    while _exists(is_overdue) and (
        closed := _update_where(is_unlocked(is_overdue, limit=EXPIRY_BATCH), expired_values())
    ):
        number += closed
    return number


def requeue_unconfirmed(messages: Sequence[TaskMessage], error: BaseException, status: BatchStatus) -> None:
    """Requeues messages that the broker has not confirmed.

    A message that was certainly not sent is due at once. Any other may itself be the cause of the error, or may already
    be in the queue. It is retried at growing intervals, and becomes a dead letter in the end.
    """
    error_text = f"{NOT_PUBLISHED_PREFIX}{type(error).__name__}: {error}"
    if status == "unsent":
        values = {**waiting_values(IMMEDIATELY, error_text), "publications": _c.publications - 1}
    else:
        values = waiting_or_dead_values(
            _c.publications >= MAX_PUBLICATIONS, now() + lease_seconds() / RETRIES_PER_LEASE, error_text
        )
    _update_queued(messages, values)


def close_untracked(messages: Sequence[TaskMessage], error: BaseException | None) -> None:
    """Closes untracked deliveries: as done once they are published, as dead letters when the outcome is unknown."""
    done = {"state": DONE, "closed_at": now(), "error": None}
    _update_queued(messages, done if error is None else dead_values(f"{UNKNOWN_OUTCOME_ERROR}: {error}"))


def requeue_lost(sizes: Callable[[Iterable[str]], Mapping[str, int]]) -> int:
    """Requeues lost messages among those whose lease has run out, and returns their number.

    A message counts as lost when its queue is empty, or when a worker has started a message that was published after
    it. Otherwise it waits in a long queue, and its lease is extended.

    Args:
        sizes: returns the number of ready messages in each queue of the broker.
    """
    lease_over = or_(_c.due_at <= now(), _c.due_at > now() + 2 * MAX_LEASE_SECONDS)
    query = select(_c.queue).where(is_open(QUEUED), lease_over).distinct()
    with engine().connect() as connection:
        queues = list(connection.scalars(query))
    countable = [queue for queue in queues if is_queue(queue)]
    ready = sizes(countable) if countable else {}
    return sum(_requeue_lost_of_queue(queue, lease_over, _is_probably_lost(queue, ready)) for queue in queues)


def has_long_queued(queues: Sequence[str]) -> bool:
    """Whether a message in one of these queues was published longer ago than the first lease."""
    is_old = _c.published_at < now() - LEASE_SECONDS
    return _exists(is_open(QUEUED), _c.queue.in_(queues), is_old)


def _is_probably_lost(queue: str, ready: Mapping[str, int]) -> ColumnElement[bool]:
    """Whether the queue is empty; for a queue without a size, whether the message is older than the longest lease."""
    return literal(not ready[queue]) if is_queue(queue) else _c.published_at + MAX_LEASE_SECONDS < now()


def _requeue_lost_of_queue(queue: str, lease_over: ColumnElement[bool], is_probably_lost: ColumnElement[bool]) -> int:
    to_check = (is_open(QUEUED), _c.queue == queue, lease_over)
    is_lost = is_probably_lost | (_c.published_at + LEASE_SECONDS < _last_started_publication(queue))
    is_last = (_c.promise == "at-most-once") | (_c.publications >= MAX_PUBLICATIONS)
    too_often = (
        f"published {MAX_PUBLICATIONS} times and never started: does a worker of queue {queue} know its handler?"
    )
    error = case((_c.promise == "at-most-once", UNKNOWN_OUTCOME_ERROR), else_=too_often)
    with write_connection() as connection:
        give_up = update(deliveries).where(is_unlocked(*to_check, is_lost, is_last)).values(dead_values(error))
        connection.execute(give_up)
        requeue = update(deliveries).where(is_unlocked(*to_check, is_lost)).values(state=WAITING, due_at=IMMEDIATELY)
        requeued = connection.execute(requeue).rowcount
        connection.execute(update(deliveries).where(is_unlocked(*to_check)).values(due_at=_next_check_at()))
    return requeued


def _last_started_publication(queue: str) -> ColumnElement[float]:
    """Returns the publication time of the latest started message of a queue; 0 when none is found.

    It looks at running deliveries and at the `RECENT_DELIVERIES` latest ones, which is cheap.
    """
    running = select(_c.published_at, _c.started_at, _c.queue).where(is_open(RUNNING))
    recent = select(_c.published_at, _c.started_at, _c.queue).order_by(_c.emission.desc()).limit(RECENT_DELIVERIES)
    started = union_all(running, select(recent.subquery())).subquery()
    latest = select(func.max(started.c.published_at)).where(started.c.queue == queue, started.c.started_at.is_not(None))
    return func.coalesce(latest.scalar_subquery(), 0.0)


def _exists(*conditions: ColumnElement[bool]) -> bool:
    """Whether a delivery meets all conditions; locks no rows."""
    with engine().connect() as connection:
        return connection.scalar(select(literal(1)).select_from(deliveries).where(*conditions).limit(1)) is not None


def _update_where(condition: ColumnElement[bool], values: Mapping[str, Any]) -> int:
    with write_connection() as connection:
        return connection.execute(update(deliveries).where(condition).values(values)).rowcount


def _is_due() -> ColumnElement[bool]:
    return is_open(WAITING) & (_c.due_at <= now())


def _queued_values() -> dict[str, Any]:
    reset = {"published_at": now(), "started_at": None, "publications": _c.publications + 1}
    error = case((_c.error.startswith(NOT_PUBLISHED_PREFIX), None), else_=_c.error)  # the error of a run stays
    return {"state": QUEUED, "due_at": _next_check_at(), "error": error, **reset}


def _next_check_at() -> ColumnElement[float]:
    """Returns the time of the next check of a queued message: at the end of its lease, in 60 s at the latest."""
    return now() + case(
        (lease_seconds() > MAX_CHECK_INTERVAL_SECONDS, MAX_CHECK_INTERVAL_SECONDS), else_=lease_seconds()
    )


def _update_queued(messages: Sequence[TaskMessage], values: Mapping[str, Any]) -> None:
    """Updates the deliveries of these messages that are still queued."""
    if messages:
        keys = ((message.envelope.emission, message.handler) for message in messages)
        with write_connection() as connection:
            is_queued = _has_key_in(connection, keys) & (_c.state == QUEUED)
            connection.execute(update(deliveries).where(is_queued).values(values))


def _store_queues(connection: Connection, messages: Sequence[TaskMessage], values: Mapping[str, Any]) -> None:
    """Updates the rows of these messages with the values and with the queue of each message."""
    if messages:
        columns = {name: _c[name].type for name in ("emission", "handler", "queue")}
        keys_and_queues = ((message.envelope.emission, message.handler, message.queue) for message in messages)
        rows = [dict(zip(columns, each, strict=True)) for each in keys_and_queues]
        new = json_rows(connection.dialect.name, bindparam(None, json.dumps(rows)), columns)
        has_key = (_c.emission == new.c.emission) & (_c.handler == new.c.handler)
        connection.execute(update(deliveries).where(has_key).values({**values, "queue": new.c.queue}))


def _has_key_in(connection: Connection, keys: Iterable[tuple[str, str]]) -> ColumnElement[bool]:
    """Returns the condition for deliveries with these keys."""
    columns = {"emission": _c.emission.type, "handler": _c.handler.type}
    rows = json.dumps([dict(zip(columns, key, strict=True)) for key in keys], ensure_ascii=False)
    key_table = json_rows(connection.dialect.name, bindparam(None, rows), columns)
    return tuple_(_c.emission, _c.handler).in_(select(key_table.c.emission, key_table.c.handler))


def only_untracked(messages: Iterable[TaskMessage]) -> list[TaskMessage]:
    """Returns the messages of untracked deliveries."""
    return [message for message in messages if message.delivery not in TRACKED_DELIVERIES]
