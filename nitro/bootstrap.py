"""The composition root: the only module that sees every layer."""

from __future__ import annotations

from nitro.infrastructure.events.dispatcher import fill
from nitro.infrastructure.offload import tracking
from nitro.infrastructure.offload.publisher import Publisher
from nitro.infrastructure.outbox.keeper import Keeper
from nitro.infrastructure.worker import task


def wire() -> None:
    """Fill the slots of the dispatcher and the outbox, and have every Celery app know the handlers."""
    fill(Publisher())
    tracking.fill(Keeper())
    task.wire()
