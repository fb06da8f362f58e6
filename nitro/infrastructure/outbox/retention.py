"""Retention: closed deliveries are kept for a while, then deleted a few at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic

from sqlalchemy import and_, delete, exists, or_, select

from nitro.infrastructure.database import writing
from nitro.infrastructure.outbox.tables import CANCELLED, DONE, deliveries, emissions

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
    deleted = purge(datetime.now(UTC) - KEPT, (DONE, CANCELLED))
    if deleted < AT_ONCE:
        _swept = monotonic()
    return deleted


def purge(before: datetime, states: tuple[str, ...], most: int = AT_ONCE) -> int:
    """Delete deliveries that were closed before a moment; how many.

    They were emitted before it too, and ids of emissions are UUIDv7, which sort by time (RFC 9562): no further index.
    """
    d, boundary = deliveries.c, f"{int(before.timestamp() * 1000):012x}"
    boundary = f"{boundary[:8]}-{boundary[8:]}"
    old = select(d.emission, d.handler).where(
        d.emission < boundary, d.state.in_(states), d.closed_at < before.timestamp()
    )
    old = old.limit(most)
    with writing() as connection:
        keys = [tuple(row) for row in connection.execute(old)]
        if not keys:
            return 0
        mine = or_(*(and_(d.emission == emission, d.handler == handler) for emission, handler in keys))
        connection.execute(delete(deliveries).where(mine, d.state.in_(states)))
        left = exists().where(deliveries.c.emission == emissions.c.id)
        connection.execute(delete(emissions).where(emissions.c.id.in_({emission for emission, _ in keys}), ~left))
    return len(keys)
