"""The port through which deliveries are tracked, and its slot: the outbox lies above, and `bootstrap` fills it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from celery import Celery

from nitro.infrastructure.database import Commits, Transaction
from nitro.infrastructure.offload.batch import Batch
from nitro.infrastructure.offload.parcel import Parcel

Commit = Transaction | Commits


class Outbox(Protocol):
    """Keeps deliveries until their handlers have finished."""

    def keep(self, app: Celery, parcels: Sequence[Parcel], commit: Commit | None, *, queued: bool) -> list[Parcel]:
        """Write a row for each in the transaction that `commit` ends, else in one of its own.

        Returns:
            Those that whoever writes them is to publish after the commit; a relay publishes the others.

        Args:
            app: whose broker will carry them.
            queued: whether he can.
        """

    def can_store(self, text: str) -> bool:
        """Whether the database has all of its characters."""

    def put_back(self, batch: Batch) -> None:
        """Have a relay publish what was kept as queued and has not surely left; note queues other than foreseen."""

    def cancel(self, emission: str, handler: str | None) -> int:
        """Cancel what has not started; how many."""


_filled: list[Outbox] = []


def fill(outbox: Outbox) -> None:
    """Put the outbox in its slot, in place of an earlier one."""
    _filled[:] = [outbox]


def outbox() -> Outbox:
    """The outbox of this process."""
    return _filled[0]
