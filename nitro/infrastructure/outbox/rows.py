"""Rows: what the outbox keeps of an emission and of a message, and the message that a relay makes of it again."""

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
"""Seconds after which a message that nobody has taken is looked after; doubled with each publication."""
MAX_LEASE_SECONDS = 600.0


PROPAGATED_HEADERS_KEY = "carried"
"""Where the options of a row keep the headers that its emission sends along."""


def lease_seconds() -> ColumnElement[float]:
    """Seconds until a delivery that is published once more is looked after."""
    times = deliveries.c.publications
    return case((times > 5, MAX_LEASE_SECONDS), else_=LEASE_SECONDS * literal(1).bitwise_lshift(times))


def is_published_by_caller(message: TaskMessage, queued: bool) -> bool:
    """Whether whoever keeps a message publishes it, and no relay."""
    return queued and not message.options.get("countdown")


def emission_row(messages: Sequence[TaskMessage]) -> dict[str, Any]:
    """The row of the emission that all of these messages are of, with the payload of each mode."""
    envelope = messages[0].envelope
    causes = {"root": to_storable_id(envelope.root), "parent": to_storable_id(envelope.parent)}
    facts = {"event": envelope.event, "sender": to_storable(envelope.sender), **causes, "story": messages[0].report}
    payloads: dict[str, str | None] = {message.mode: message.envelope.payload for message in messages}
    return {"id": envelope.emission, **facts, "snapshot": None, "reload": None, **payloads}


def delivery_rows(app: Celery, messages: Sequence[TaskMessage], queued: bool) -> list[dict[str, Any]]:
    """The row of each message, but for its times, which the database's clock makes of the last four.

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
    ends_at, ends_after = _expires_at(
        options.pop("expires") if "expires" in options else getattr(task, "expires", None)
    )
    at_once = is_published_by_caller(message, queued)
    return {
        "emission": message.envelope.emission,
        "handler": message.handler,
        "id": message.task_id,
        "promise": message.delivery,
        "mode": message.mode,
        "queue": message.queue,
        "options": _options_json(message.handler, options) if options else None,
        "state": QUEUED if at_once else WAITING,
        "publications": int(at_once),
        "at_once": at_once,
        "put_off": LEASE_SECONDS if at_once else float(countdown or 0.0),
        "ends_at": ends_at,
        "ends_after": ends_after,
    }


def _expires_at(expires: Any) -> tuple[float | None, float | None]:
    """The time at which a message expires, by its own option or by the class of its task, or the seconds until then."""
    if expires is None:
        return None, None
    moment = maybe_iso8601(expires) if isinstance(expires, str) else expires
    return (in_utc(moment).timestamp(), None) if isinstance(moment, datetime) else (None, float(moment))


def _options_json(handler: str, options: dict[str, Any]) -> str:
    """The options as JSON; a queue or an exchange by its name."""
    try:
        return json.dumps({name: getattr(value, "name", value) for name, value in options.items()})
    except (TypeError, ValueError) as error:
        raise OptionNotSerializable(handler, str(error)) from error


def task_message_from_row(row: Any) -> TaskMessage:
    """The message that this row was made of; of a tracked one without its payload."""
    envelope = Envelope(
        emission=row.emission, event=row.event, sender=row.sender, root=row.root, parent=row.parent, payload=row.payload
    )
    options = json.loads(row.options or "{}")
    carried = options.pop(PROPAGATED_HEADERS_KEY, {})
    if row.expires_at is not None:
        options["expires"] = datetime.fromtimestamp(row.expires_at, UTC)
    return TaskMessage(
        handler=row.handler,
        task_id=row.id,
        envelope=envelope,
        delivery=row.promise,
        mode=row.mode,
        options={**options, "retries": row.retries},
        propagated_headers=carried,
        queue=row.queue,
    )


def payload_column() -> ColumnElement[str | None]:
    """The payload that a handler of this mode wants."""
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
"""The columns of which `parcel_of` makes a message."""


def json_rows(dialect: str, rows: BindParameter[str], columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
    """A table of these columns."""
    if dialect == "postgresql":
        objects = func.json_to_recordset(rows.op("::")(literal_column("json")))
        typed = objects.table_valued(*(Column(name, type_) for name, type_ in columns.items()))
        return typed.render_derived(name="given", with_types=True)
    each = func.json_each(rows).table_valued("value").alias("each")
    values = (func.json_extract(each.c.value, f"$.{name}", type_=type_).label(name) for name, type_ in columns.items())
    return select(*values).subquery("given")
