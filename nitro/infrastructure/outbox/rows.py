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


def delivery_rows(app: Celery, parcels: Sequence[Parcel], queued: bool) -> list[dict[str, Any]]:
    """The row of each parcel, but for its times, which the database's clock makes of the last four.

    Raises:
        DeclarationError: a queue has a name that cannot be stored.
        OptionNotSerializable: an option of a message is not JSON.
    """
    tasks = app.tasks
    for parcel, queue in zip(parcels, foreseen(app, parcels), strict=True):
        parcel.queue = queue
    return [_delivery_row(parcel, tasks.get(parcel.handler), queued) for parcel in parcels]


def _delivery_row(parcel: Parcel, task: Any, queued: bool) -> dict[str, Any]:
    options = {**parcel.options, CARRIED: parcel.carried} if parcel.carried else {**parcel.options}
    countdown = options.pop("countdown", None)
    ends_at, ends_after = _expiry(options.pop("expires") if "expires" in options else getattr(task, "expires", None))
    at_once = leaves_at_once(parcel, queued)
    return {
        "emission": parcel.message.emission,
        "handler": parcel.handler,
        "id": parcel.task_id,
        "promise": parcel.promise,
        "mode": parcel.mode,
        "queue": parcel.queue,
        "options": _json(parcel.handler, options) if options else None,
        "state": QUEUED if at_once else WAITING,
        "publications": int(at_once),
        "at_once": at_once,
        "put_off": LEASE if at_once else float(countdown or 0.0),
        "ends_at": ends_at,
        "ends_after": ends_after,
    }


def _expiry(expires: Any) -> tuple[float | None, float | None]:
    """The time at which a parcel expires, by its own option or by the class of its task, or the seconds until then."""
    if expires is None:
        return None, None
    moment = maybe_iso8601(expires) if isinstance(expires, str) else expires
    return (in_utc(moment).timestamp(), None) if isinstance(moment, datetime) else (None, float(moment))


def _json(handler: str, options: dict[str, Any]) -> str:
    """The options as JSON; a queue or an exchange by its name."""
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
