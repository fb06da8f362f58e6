"""Rows: what the outbox keeps of an emission and of a parcel, and the parcel that a relay makes of it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.utils.time import maybe_iso8601
from sqlalchemy import ColumnElement, case, literal

from nitro.errors import OptionNotSerializable
from nitro.infrastructure.events.names import check_name
from nitro.infrastructure.offload.destinations import foreseen
from nitro.infrastructure.offload.message import Message
from nitro.infrastructure.offload.options import in_utc
from nitro.infrastructure.offload.parcel import TRACKED, Parcel
from nitro.infrastructure.outbox.tables import QUEUED, WAITING, deliveries, emissions
from nitro.infrastructure.outbox.texts import identity, storable

LEASE = 10.0
"""Seconds after which a message that nobody has taken is looked after; doubled with each publication."""
LONGEST_LEASE = 600.0


CARRIED = "carried"
"""Where the options of a row keep the headers that its emission sends along."""


def lease() -> ColumnElement[float]:
    """Seconds until a delivery that is published once more is looked after."""
    times = deliveries.c.publications
    return case((times > 5, LONGEST_LEASE), else_=LEASE * literal(1).bitwise_lshift(times))


def leaves_at_once(parcel: Parcel, queued: bool) -> bool:
    """Whether whoever keeps a parcel publishes it, and no relay."""
    return queued and not parcel.options.get("countdown")


def emission_row(parcels: Sequence[Parcel]) -> dict[str, Any]:
    """The row of the emission that all of these parcels are of, with the payload of each mode."""
    message = parcels[0].message
    causes = {"root": identity(message.root), "parent": identity(message.parent)}
    facts = {"event": message.event, "sender": storable(message.sender), **causes, "story": parcels[0].story}
    payloads: dict[str, str | None] = {parcel.mode: parcel.message.payload for parcel in parcels}
    return {"id": message.emission, **facts, "snapshot": None, "reload": None, **payloads}


def delivery_row(app: Celery, parcel: Parcel, queued: bool) -> dict[str, Any]:
    """The row of a parcel, but for its times, which the database's clock makes of the last four.

    Raises:
        DeclarationError: its queue has a name that cannot be stored.
        OptionNotSerializable: an option of its message is not JSON.
    """
    options = {**parcel.options, **({CARRIED: parcel.carried} if parcel.carried else {})}
    countdown, expires = options.pop("countdown", None) or 0.0, _expiry(app, parcel)
    options.pop("expires", None)
    at_once = leaves_at_once(parcel, queued)
    parcel.queue = foreseen(app, parcel)
    check_name(f"the queue of handler {parcel.handler}", parcel.queue)
    return {
        "emission": parcel.message.emission,
        "handler": parcel.handler,
        "id": parcel.task_id,
        "promise": parcel.promise,
        "mode": parcel.mode,
        "queue": parcel.queue,
        "options": _json(parcel.handler, options),
        "state": QUEUED if at_once else WAITING,
        "publications": int(at_once),
        "at_once": at_once,
        "put_off": LEASE if at_once else float(countdown),
        "ends_at": expires.timestamp() if isinstance(expires, datetime) else None,
        "ends_after": None if isinstance(expires, datetime) or expires is None else float(expires),
    }


def _expiry(app: Celery, parcel: Parcel) -> datetime | float | None:
    """When a parcel expires, by its own option or by the class of its task."""
    given = parcel.options["expires"] if "expires" in parcel.options else _of_class(app, parcel.handler)
    moment = maybe_iso8601(given) if isinstance(given, str) else given
    return in_utc(moment) if isinstance(moment, datetime) else moment


def _of_class(app: Celery, handler: str) -> Any:
    return getattr(app.tasks.get(handler), "expires", None)


def _json(handler: str, options: dict[str, Any]) -> str | None:
    """The options as JSON; a queue or an exchange by its name."""
    if not options:
        return None
    try:
        return json.dumps({name: getattr(value, "name", value) for name, value in options.items()})
    except (TypeError, ValueError) as error:
        raise OptionNotSerializable(handler, str(error)) from error


def parcel_of(row: Any) -> Parcel:
    """The parcel that this row was made of; of a tracked one without its payload."""
    message = Message(
        emission=row.emission, event=row.event, sender=row.sender, root=row.root, parent=row.parent, payload=row.payload
    )
    options = json.loads(row.options or "{}")
    carried = options.pop(CARRIED, {})
    if row.expires_at is not None:
        options["expires"] = datetime.fromtimestamp(row.expires_at, UTC)
    return Parcel(
        handler=row.handler,
        task_id=row.id,
        message=message,
        promise=row.promise,
        mode=row.mode,
        options={**options, "retries": row.retries},
        carried=carried,
        queue=row.queue,
    )


def payload() -> ColumnElement[str | None]:
    """The payload that a handler of this mode wants."""
    return case((deliveries.c.mode == "reload", emissions.c.reload), else_=emissions.c.snapshot)


PARCEL = (
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
    case((deliveries.c.promise.in_(TRACKED), None), else_=payload()).label("payload"),
)
"""The columns of which `parcel_of` makes a parcel."""
