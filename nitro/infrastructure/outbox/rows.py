"""Rows of the outbox: values for an emission and its deliveries, and the message that a relay rebuilds from a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.utils.time import maybe_iso8601
from sqlalchemy import BindParameter, Column, ColumnElement, FromClause, case, func, literal, literal_column, select
from sqlalchemy.types import TypeEngine

from nitro.errors import OptionNotSerializable
from nitro.infrastructure.offload.destinations import expected_queues
from nitro.infrastructure.offload.envelope import TRACKED_DELIVERIES, Envelope, TaskMessage
from nitro.infrastructure.offload.options import in_utc
from nitro.infrastructure.outbox.schema import QUEUED, WAITING, deliveries, emissions
from nitro.infrastructure.outbox.texts import to_storable, to_storable_id

LEASE_SECONDS = 10.0
"""Seconds after which a published message that no worker has started is checked; doubled with each publication."""
MAX_LEASE_SECONDS = 600.0

PROPAGATED_HEADERS_KEY = "carried"
"""The key of `options` that holds the propagated headers of the emission."""


def lease_seconds() -> ColumnElement[float]:
    """Returns the lease of the next publication, in seconds."""
    publications = deliveries.c.publications
    return case((publications > 5, MAX_LEASE_SECONDS), else_=LEASE_SECONDS * literal(1).bitwise_lshift(publications))


def is_published_by_caller(message: TaskMessage, queued: bool) -> bool:
    """Whether the process that stores the message also publishes it, and not a relay."""
    return queued and not message.options.get("countdown")


def emission_row(messages: Sequence[TaskMessage]) -> dict[str, Any]:
    """Returns the row of the emission of these messages, with the payload of each `entity=` mode."""
    envelope = messages[0].envelope
    causes = {"root": to_storable_id(envelope.root), "parent": to_storable_id(envelope.parent)}
    columns = {"event": envelope.event, "sender": to_storable(envelope.sender), **causes, "story": messages[0].report}
    payloads: dict[str, str | None] = {message.mode: message.envelope.payload for message in messages}
    return {"id": envelope.emission, **columns, "snapshot": None, "reload": None, **payloads}


def delivery_rows(app: Celery, messages: Sequence[TaskMessage], queued: bool) -> list[dict[str, Any]]:
    """Returns the row of each message. The database computes its times from the last four values, by its own clock.

    Raises:
        DeclarationError: a queue has a name that cannot be stored.
        OptionNotSerializable: an option of a message is not JSON.
    """
    tasks = app.tasks
    for message, queue in zip(messages, expected_queues(app, messages), strict=True):
        message.queue = queue
    return [_delivery_row(message, tasks.get(message.handler), queued) for message in messages]


def _delivery_row(message: TaskMessage, task: Any, queued: bool) -> dict[str, Any]:
    options = (
        {**message.options, PROPAGATED_HEADERS_KEY: message.propagated_headers}
        if message.propagated_headers
        else {**message.options}
    )
    countdown = options.pop("countdown", None)
    expires_at, expires_in = _expires_at(
        options.pop("expires") if "expires" in options else getattr(task, "expires", None)
    )
    publish_now = is_published_by_caller(message, queued)
    return {
        "emission": message.envelope.emission,
        "handler": message.handler,
        "id": message.task_id,
        "promise": message.delivery,
        "mode": message.mode,
        "queue": message.queue,
        "options": _options_json(message.handler, options) if options else None,
        "state": QUEUED if publish_now else WAITING,
        "publications": int(publish_now),
        "publish_now": publish_now,
        "delay": LEASE_SECONDS if publish_now else float(countdown or 0.0),
        "expires_at": expires_at,
        "expires_in": expires_in,
    }


def _expires_at(expires: Any) -> tuple[float | None, float | None]:
    """Returns the time at which a message expires, and the seconds until it expires; at least one of them is None."""
    if expires is None:
        return None, None
    moment = maybe_iso8601(expires) if isinstance(expires, str) else expires
    return (in_utc(moment).timestamp(), None) if isinstance(moment, datetime) else (None, float(moment))


def _options_json(handler: str, options: dict[str, Any]) -> str:
    """Returns the options as JSON, with queues and exchanges by their names."""
    try:
        return json.dumps({name: getattr(value, "name", value) for name, value in options.items()})
    except (TypeError, ValueError) as error:
        raise OptionNotSerializable(handler, str(error)) from error


def task_message_from_row(row: Any) -> TaskMessage:
    """Returns the message of this row; a tracked delivery's message carries no payload."""
    envelope = Envelope(
        emission=row.emission, event=row.event, sender=row.sender, root=row.root, parent=row.parent, payload=row.payload
    )
    options = json.loads(row.options or "{}")
    propagated_headers = options.pop(PROPAGATED_HEADERS_KEY, {})
    if row.expires_at is not None:
        options["expires"] = datetime.fromtimestamp(row.expires_at, UTC)
    return TaskMessage(
        handler=row.handler,
        task_id=row.id,
        envelope=envelope,
        delivery=row.promise,
        mode=row.mode,
        options={**options, "retries": row.retries},
        propagated_headers=propagated_headers,
        queue=row.queue,
    )


def payload_column() -> ColumnElement[str | None]:
    """Returns the payload for the `entity=` mode of the delivery."""
    return case((deliveries.c.mode == "reload", emissions.c.reload), else_=emissions.c.snapshot)


TASK_MESSAGE_COLUMNS = (
    deliveries.c.emission,
    deliveries.c.handler,
    deliveries.c.id,
    deliveries.c.promise,
    deliveries.c.mode,
    deliveries.c.options,
    deliveries.c.retries,
    deliveries.c.queue,
    deliveries.c.expires_at,
    emissions.c.event,
    emissions.c.sender,
    emissions.c.root,
    emissions.c.parent,
    case((deliveries.c.promise.in_(TRACKED_DELIVERIES), None), else_=payload_column()).label("payload"),
)
"""The columns that `task_message_from_row` reads."""


def json_rows(dialect: str, rows: BindParameter[str], columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
    """Returns the JSON array `rows` as a table of these columns."""
    if dialect == "postgresql":
        objects = func.json_to_recordset(rows.op("::")(literal_column("json")))
        typed = objects.table_valued(*(Column(name, type_) for name, type_ in columns.items()))
        return typed.render_derived(name="rows", with_types=True)
    each = func.json_each(rows).table_valued("value").alias("each")
    values = (func.json_extract(each.c.value, f"$.{name}", type_=type_).label(name) for name, type_ in columns.items())
    return select(*values).subquery("rows")
