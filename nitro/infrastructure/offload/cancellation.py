"""Cancelling deliveries that have not started."""

from __future__ import annotations

from nitro.infrastructure.events.dispatcher import dispatcher
from nitro.infrastructure.offload.tracking import outbox


def cancel(emission_id: str, handler: str | None = None) -> int:
    """Cancel the tracked deliveries of an emission whose handler has not started, also across restarts.

    Inside a `transaction()` they are cancelled with its commit.

    Args:
        emission_id: `Emission.id`.
        handler: only this handler's; None means all.

    Returns:
        How many were cancelled.

    Raises:
        NotTracked: nothing of that emission, or for that handler of it, is tracked.
    """
    dispatcher()  # fills the outbox's slot where nothing has been declared yet
    return outbox().cancel(emission_id, handler)
