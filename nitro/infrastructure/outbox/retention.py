"""Retention: closed deliveries are kept for a while, then deleted a few at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic

from sqlalchemy import and_, delete, exists, or_, select

from nitro.infrastructure.database import write_connection
from nitro.infrastructure.outbox.schema import CANCELLED, DONE, deliveries, emissions, min_id_at
from nitro.infrastructure.outbox.states import PUBLISHED, is_in_states

RETENTION_PERIOD = timedelta(days=14)
"""Longer than any broker keeps a message that it may deliver again."""
SWEEP_INTERVAL_SECONDS = 600.0
"""Seconds between two sweeps."""
DELETE_BATCH = 200

_last_sweep_at = -SWEEP_INTERVAL_SECONDS


def sweep() -> int:
    """Delete some of what is done or cancelled and older than `KEPT`, now and then; how many deliveries."""
    global _last_sweep_at  # noqa: PLW0603  # one clock a process
    if monotonic() - _last_sweep_at < SWEEP_INTERVAL_SECONDS:
        return 0
    before = datetime.now(UTC) - RETENTION_PERIOD
    deleted = purge_deliveries(before, (DONE, PUBLISHED, CANCELLED)) + purge_emissions(before)
    if deleted < DELETE_BATCH:
        _last_sweep_at = monotonic()
    return deleted


def purge_deliveries(before: datetime, states: tuple[str, ...], most: int = DELETE_BATCH) -> int:
    """Delete deliveries that were closed before a moment, and so emitted before it too; how many.

    Another purge beside it skips them, and with them the emissions that both would otherwise leave to each other.
    """
    d = deliveries.c
    closed = is_in_states(states) & (d.closed_at < before.timestamp())
    old = select(d.emission, d.handler).join(emissions).where(d.emission < min_id_at(before), closed).limit(most)
    with write_connection() as connection:
        keys = [tuple(row) for row in connection.execute(old.with_for_update(skip_locked=True))]
        if not keys:
            return 0
        mine = or_(*(and_(d.emission == emission, d.handler == handler) for emission, handler in keys))
        deleted = connection.execute(delete(deliveries).where(mine)).rowcount
        left = exists().where(deliveries.c.emission == emissions.c.id)
        connection.execute(delete(emissions).where(emissions.c.id.in_({emission for emission, _ in keys}), ~left))
    return deleted


def purge_emissions(before: datetime, most: int = DELETE_BATCH) -> int:
    """Delete emissions of before a moment that the journal has recorded; how many."""
    left = exists().where(deliveries.c.emission == emissions.c.id)
    old = select(emissions.c.id).where(emissions.c.id < min_id_at(before), ~left).limit(most)
    with write_connection() as connection:
        ids = connection.scalars(old.with_for_update(skip_locked=True)).all()
        return connection.execute(delete(emissions).where(emissions.c.id.in_(ids))).rowcount if ids else 0
