"""Cancelling deliveries that have not started."""

from __future__ import annotations

from nitro.errors import NotTracked


def cancel(emission_id: str, handler: str | None = None) -> int:
    """Cancel the tracked deliveries of an emission whose handler has not started.

    Args:
        emission_id: `Emission.id`.
        handler: only this handler's; None means all.

    Returns:
        How many were cancelled.

    Raises:
        NotTracked: nothing of that emission is tracked. No delivery is, until there is an outbox.
    """
    raise NotTracked(emission_id if handler is None else f"{emission_id} ({handler})")
