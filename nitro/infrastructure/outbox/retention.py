"""Retention: closed deliveries are kept for `RETENTION_PERIOD`, then deleted in batches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic

from sqlalchemy import and_, delete, exists, or_, select

from nitro.infrastructure.database import write_connection
from nitro.infrastructure.outbox.schema import CANCELLED, DONE, deliveries, emissions, min_id_at
from nitro.infrastructure.outbox.states import PUBLISHED, is_in_states

RETENTION_PERIOD = timedelta(days=14)
"""The time for which closed deliveries are kept: longer than a broker keeps a message that it may redeliver."""
SWEEP_INTERVAL_SECONDS = 600.0
"""Seconds between two sweeps."""
DELETE_BATCH = 200
"""Rows that are deleted by one statement."""

_last_sweep_at = -SWEEP_INTERVAL_SECONDS


def sweep() -> int:
    """Deletes a batch of done or cancelled deliveries older than `RETENTION_PERIOD`; returns the number of rows.

    It does nothing within `SWEEP_INTERVAL_SECONDS` after a sweep that has found few.
    """
    global _last_sweep_at  # noqa: PLW0603  # one clock a process
    if monotonic() - _last_sweep_at < SWEEP_INTERVAL_SECONDS:
        return 0
    before = datetime.now(UTC) - RETENTION_PERIOD
    deleted = purge_deliveries(before, (DONE, PUBLISHED, CANCELLED)) + purge_emissions(before)
    if deleted < DELETE_BATCH:
        _last_sweep_at = monotonic()
    return deleted


def purge_deliveries(before: datetime, states: tuple[str, ...], limit: int = DELETE_BATCH) -> int:
    """Deletes deliveries closed before a moment, and their emissions; returns the number of deliveries.

    It locks deliveries together with their emissions. So a parallel purge skips both, and no emission is left behind.
    """
    d = deliveries.c
    closed = is_in_states(states) & (d.closed_at < before.timestamp())
    old = select(d.emission, d.handler).join(emissions).where(d.emission < min_id_at(before), closed).limit(limit)
    with write_connection() as connection:
        keys = [tuple(row) for row in connection.execute(old.with_for_update(skip_locked=True))]
        if not keys:
            return 0
        has_key = or_(*(and_(d.emission == emission, d.handler == handler) for emission, handler in keys))
        deleted = connection.execute(delete(deliveries).where(has_key)).rowcount
        ids = {emission for emission, _ in keys}
        has_delivery = exists().where(deliveries.c.emission == emissions.c.id)
        connection.execute(delete(emissions).where(emissions.c.id.in_(ids), ~has_delivery))
    return deleted


def purge_emissions(before: datetime, limit: int = DELETE_BATCH) -> int:
    """Deletes emissions without deliveries that were emitted before a moment, and returns their number."""
    has_delivery = exists().where(deliveries.c.emission == emissions.c.id)
    old = select(emissions.c.id).where(emissions.c.id < min_id_at(before), ~has_delivery).limit(limit)
    with write_connection() as connection:
        ids = connection.scalars(old.with_for_update(skip_locked=True)).all()
        return connection.execute(delete(emissions).where(emissions.c.id.in_(ids))).rowcount if ids else 0
