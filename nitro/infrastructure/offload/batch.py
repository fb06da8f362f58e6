"""Batch: parcels on their way to the broker, and what became of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal

from celery import Celery

from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.parcel import Parcel

logger = logger_named("nitro.offload")

Fate = Literal["pending", "sending", "sent", "unsent", "unknown", "refused"]


class Batch:
    """Parcels on their way, and what became of them.

    Attributes:
        app: through whose broker they go.
        fate: `unsent` when certainly nothing has left; `refused` when the parcels, not the broker, are to blame.
        open: those that have not surely left.
        error: why.
    """

    def __init__(self, app: Celery, parcels: Sequence[Parcel], failed: Callable[[Batch], None] | None = None) -> None:
        self.app = app
        self.parcels, self.open = tuple(parcels), list(parcels)
        self.failed = failed
        self.fate: Fate = "pending"
        self.error: BaseException | None = None
        self._once = any(parcel.promise == "at-most-once" for parcel in self.parcels)
        self._lock, self._under_way = threading.Lock(), threading.Lock()
        self._under_way.acquire()
        self._ended = False

    def goes_with(self, other: Batch) -> bool:
        """Whether both may leave together; one that must not come twice shares no doubt about another."""
        return self.app is other.app and not (self._once or other._once)

    def begin(self) -> bool:
        """Take it up, unless nobody waits for it any more."""
        return self._move("pending", "sending")

    def withdraw(self) -> bool:
        """Keep it from leaving, if that is still possible."""
        if not self._move("pending", "unsent"):
            return False
        self.error = TimeoutError("the broker has not answered in time")
        self._tell()
        return True

    def end(self, fate: Fate, error: BaseException | None = None) -> None:
        """Say what became of it."""
        self.error = error
        with self._lock:
            withdrawn, self.fate = self.fate == "unsent", fate
            if not self._ended:
                self._ended = True
                self._under_way.release()
        if (error is not None and not withdrawn) or any(parcel.strayed for parcel in self.parcels):
            self._tell()

    def wait(self, seconds: float) -> Fate:
        """What became of it within so many seconds; what nobody has taken up by then never leaves."""
        if self._under_way.acquire(timeout=max(seconds, 0.0)):
            self._under_way.release()
        elif not self.withdraw() and self.fate == "sending":
            return "unknown"
        return self.fate

    def _tell(self) -> None:
        """Say what its rows do not; where even that fails, they are looked after when their lease is over."""
        if self.failed is None:
            return
        try:
            self.failed(self)
        except Exception:
            logger.exception("what became of %d messages could not be put back into their rows", len(self.parcels))

    def _move(self, old: Fate, new: Fate) -> bool:
        with self._lock:
            if self.fate == old:
                self.fate = new
                return True
            return False
