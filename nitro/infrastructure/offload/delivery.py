"""The delivery of a running handler, as `current_delivery()` returns it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from nitro.infrastructure import scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A run of an offloaded handler in a worker.

    Attributes:
        emission: id of the emission that queued it.
        root: id of the first emission in its chain of causes, or None.
        parent: id of the emission whose handler emitted it, or None.
        event: name of the event, or None when the task was called by itself.
        handler: name of the handler.
        attempt: 1 at the first run.
        idempotency_key: UUID text, the same at every attempt; give it to the receiver of an external effect.
        deadline: UTC time of the soft or hard time limit, or None without one.
    """

    emission: str
    root: str | None
    parent: str | None
    event: str | None
    handler: str
    attempt: int
    idempotency_key: str
    deadline: datetime | None

    @property
    def id(self) -> str:
        """The emission's id, which becomes the parent of emissions in the handler."""
        return self.emission

    @property
    def transaction(self) -> scope.Transaction | None:
        """The transaction that is open in the caller, or None."""
        return scope.current_transaction()


running_delivery: ContextVar[Delivery | None] = ContextVar("nitro_delivery", default=None)


def current_delivery() -> Delivery | None:
    """Returns the delivery of the running handler, or None outside of a worker."""
    return running_delivery.get()
