"""The composition root: the only module that sees every layer."""

from __future__ import annotations

from nitro.infrastructure.events.dispatcher import fill
from nitro.infrastructure.offload import tracking
from nitro.infrastructure.offload.publisher import Publisher
from nitro.infrastructure.outbox import journal
from nitro.infrastructure.outbox.keeper import Keeper
from nitro.infrastructure.worker import task
from nitro.settings import Settings


def wire() -> None:
    """Fill the slots of the dispatcher and the outbox, have every Celery app know the handlers, begin the journal.

    Raises:
        SettingError: a setting has a value that is not allowed.
    """
    if Settings.load().journal:
        journal.install()
    fill(Publisher())
    tracking.fill(Keeper())
    task.wire()
