"""The port through which deliveries are tracked, and its slot: the outbox lies above, and `bootstrap` fills it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from celery import Celery

from nitro.infrastructure.database import Commits, Transaction
from nitro.infrastructure.events.ports import dispatcher
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.publishing.queue import Batch

DatabaseCommit = Transaction | Commits


class Outbox(Protocol):
    """Keeps deliveries until their handlers have finished."""

    def store(
        self, app: Celery, messages: Sequence[TaskMessage], commit: DatabaseCommit | None, *, queued: bool
    ) -> list[TaskMessage]:
        """Write a row for each in the transaction that `commit` ends, else in one of its own.

        Returns:
            Those that whoever writes them is to publish after the commit; a relay publishes the others.

        Args:
            app: whose broker will carry them.
            queued: whether he can.
        """

    def can_store(self, text: str) -> bool:
        """Whether the database has all of its characters."""

    def requeue_unconfirmed(self, batch: Batch) -> None:
        """Have a relay publish what was kept as queued and has not surely left; note queues other than foreseen."""

    def cancel(self, emission: str, handler: str | None) -> int:
        """Cancel what has not started; how many."""


_registered: list[Outbox] = []


def register_outbox(outbox: Outbox) -> None:
    """Put the outbox in its slot, in place of an earlier one."""
    _registered[:] = [outbox]


def current_outbox() -> Outbox:
    """The outbox of this process."""
    return _registered[0]


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
    return current_outbox().cancel(emission_id, handler)
