"""Retention: closed deliveries are kept for a while, then deleted a few at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic

from sqlalchemy import and_, delete, exists, or_, select

from nitro.infrastructure.database import writing
from nitro.infrastructure.outbox.states import PUBLISHED, in_states
from nitro.infrastructure.outbox.tables import CANCELLED, DONE, deliveries, emissions, first_id

KEPT = timedelta(days=14)
"""Longer than any broker keeps a message that it may deliver again."""
EVERY = 600.0
"""Seconds between two sweeps."""
AT_ONCE = 200

_swept = -EVERY


def sweep() -> int:
    """Delete some of what is done or cancelled and older than `KEPT`, now and then; how many deliveries."""
    global _swept  # noqa: PLW0603  # one clock a process
    if monotonic() - _swept < EVERY:
        return 0
    before = datetime.now(UTC) - KEPT
    deleted = purge(before, (DONE, PUBLISHED, CANCELLED)) + forget(before)
    if deleted < AT_ONCE:
        _swept = monotonic()
    return deleted


def purge(before: datetime, states: tuple[str, ...], most: int = AT_ONCE) -> int:
    """Delete deliveries that were closed before a moment, and so emitted before it too; how many.

    Another purge beside it skips them, and with them the emissions that both would otherwise leave to each other.
    """
    d = deliveries.c
    closed = in_states(states) & (d.closed_at < before.timestamp())
    old = select(d.emission, d.handler).join(emissions).where(d.emission < first_id(before), closed).limit(most)
    with writing() as connection:
        keys = [tuple(row) for row in connection.execute(old.with_for_update(skip_locked=True))]
        if not keys:
            return 0
        mine = or_(*(and_(d.emission == emission, d.handler == handler) for emission, handler in keys))
        deleted = connection.execute(delete(deliveries).where(mine)).rowcount
        left = exists().where(deliveries.c.emission == emissions.c.id)
        connection.execute(delete(emissions).where(emissions.c.id.in_({emission for emission, _ in keys}), ~left))
    return deleted


def forget(before: datetime, most: int = AT_ONCE) -> int:
    """Delete emissions of before a moment that the journal has recorded; how many."""
    left = exists().where(deliveries.c.emission == emissions.c.id)
    old = select(emissions.c.id).where(emissions.c.id < first_id(before), ~left).limit(most)
    with writing() as connection:
        ids = connection.scalars(old.with_for_update(skip_locked=True)).all()
        return connection.execute(delete(emissions).where(emissions.c.id.in_(ids))).rowcount if ids else 0
