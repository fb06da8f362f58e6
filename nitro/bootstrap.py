"""The composition root: the only module that imports every layer."""

from __future__ import annotations

from nitro.infrastructure.events.ports import dispatcher_slot
from nitro.infrastructure.offload.dispatcher import CeleryDispatcher
from nitro.infrastructure.offload.ports import outbox_slot
from nitro.infrastructure.outbox import journal
from nitro.infrastructure.outbox.writer import OutboxWriter
from nitro.infrastructure.worker import task
from nitro.settings import Settings


def wire() -> None:
    """Fills the slots of the dispatcher and the outbox, registers handlers with each Celery app, starts the journal.

    Raises:
        SettingError: a setting has a value that is not allowed.
    """
    if Settings.load().journal:
        journal.observe_emissions()
    dispatcher_slot.value = CeleryDispatcher()
    outbox_slot.value = OutboxWriter()
    task.register_handlers()
