"""Tray: what waits for the courier, and when it is to be taken."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from nitro.infrastructure.offload.batch import Batch

LINGER = 0.005
"""Seconds for which what nobody waits for gathers, when others have just left."""
TOGETHER = 200
"""Messages from which on a flight waits for no further batch."""

Work = Callable[[], None]
Taken = tuple[list[Batch], Work | None]
"""Batches, and what is left to do for them; None when all is."""


class Tray:
    """Batches in the order in which they came, taken by one thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._batches: deque[Batch] = deque()
        self._begun: tuple[Batch, Work] | None = None
        self._hurry = False
        self._taken_at: float | None = None
        self._left_at = 0.0

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and nothing that was taken is still being worked on."""
        return not self._batches and self._begun is None and self._taken_at is None

    def busy_for(self) -> float:
        """Seconds since what is being worked on was taken; 0 when nothing is."""
        taken_at = self._taken_at
        return 0.0 if taken_at is None else monotonic() - taken_at

    def add(self, batch: Batch, *, hurry: bool) -> None:
        """Put in a batch; in a hurry where somebody waits for it."""
        with self._changed:
            self._batches.append(batch)
            self._hurry |= hurry
            self._changed.notify()

    def add_begun(self, batch: Batch, work: Work) -> None:
        """Put in one that is on its way, with what is left to do; it is taken before all others."""
        with self._changed:
            self._begun = batch, work
            self._changed.notify()

    def left(self) -> None:
        """Some have just left."""
        self._left_at = monotonic()

    def take(self) -> Taken:
        """Wait for what is next; what was taken before is done with."""
        with self._changed:
            self._taken_at = None
            self._hurry &= bool(self._batches)
            self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._batches or self._begun))
            self._changed.wait_for(self._is_time, self._left_at + LINGER - monotonic())
            self._taken_at = monotonic()
            return self._next()

    def drained(self, timeout: float) -> bool:
        """Wait until it is idle; whether that was so within `timeout` seconds."""
        with self._changed:
            self._hurry |= bool(self._batches)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self.is_idle, timeout)

    def _is_time(self) -> bool:
        """Whether what has gathered is to leave at once: many leave for little more than one."""
        return self._hurry or self._begun is not None or len(self._batches) >= TOGETHER

    def _next(self) -> Taken:
        """What is on its way, or as many batches as may well leave together."""
        if self._begun is not None:
            (batch, work), self._begun = self._begun, None
            return [batch], work
        batches = [self._batches.popleft()]
        parcels = len(batches[0].parcels)
        while self._batches and parcels < TOGETHER and batches[0].goes_with(self._batches[0]):
            parcels += len(self._batches[0].parcels)
            batches.append(self._batches.popleft())
        return batches, None
