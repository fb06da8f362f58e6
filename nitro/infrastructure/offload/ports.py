"""The port to the outbox, and its slot.

The outbox package is a layer above and cannot be imported here, so `bootstrap` fills the slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from celery import Celery

from nitro.infrastructure.database import Commits, Transaction
from nitro.infrastructure.events.ports import dispatcher
from nitro.infrastructure.hooks import Slot
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.publishing.queue import Batch

DatabaseCommit = Transaction | Commits


class Outbox(Protocol):
    """Stores deliveries until their handlers have finished."""

    def store(
        self, app: Celery, messages: Sequence[TaskMessage], commit: DatabaseCommit | None, *, queued: bool
    ) -> list[TaskMessage]:
        """Writes a row for each message in the transaction that `commit` ends, else in one of its own.

        Args:
            app: the Celery app that publishes the messages.
            queued: whether the publisher can publish now; the rows are then written as queued.

        Returns:
            The messages that the caller publishes after the commit; a relay publishes the rest.
        """

    def can_store(self, text: str) -> bool:
        """Whether the database can store all characters of a text."""

    def requeue_unconfirmed(self, batch: Batch) -> None:
        """Lets a relay publish the unconfirmed messages of a batch, and corrects the queues of misrouted ones."""

    def cancel(self, emission: str, handler: str | None) -> int:
        """Cancels deliveries that have not started, and returns their number."""


outbox_slot: Slot[Outbox] = Slot()


def current_outbox() -> Outbox:
    """Returns the outbox of this process."""
    outbox = outbox_slot.value
    assert outbox is not None  # `bootstrap` fills both slots
    return outbox


def cancel(emission_id: str, handler: str | None = None) -> int:
    """Cancels the tracked deliveries of an emission that have not started, also after a restart.

    Inside a `transaction()` they are cancelled with its commit.

    Args:
        emission_id: `Emission.id`.
        handler: name of the handler; None cancels the deliveries of all handlers.

    Returns:
        The number of cancelled deliveries.

    Raises:
        NotTracked: the emission has no tracked delivery, or none of that handler.
    """
    dispatcher()  # runs `bootstrap`, which fills the slot
    return current_outbox().cancel(emission_id, handler)
