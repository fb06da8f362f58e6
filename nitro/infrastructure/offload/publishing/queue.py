"""Batch: messages on their way to the broker, and what became of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Literal

from celery import Celery

from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.envelope import TaskMessage

logger = get_logger("nitro.offload")

BatchStatus = Literal["pending", "sending", "sent", "unsent", "unknown", "refused"]


class Batch:
    """Parcels on their way, and what became of them.

    Attributes:
        app: through whose broker they go.
        status: `unsent` when certainly nothing has left; `refused` when the messages, not the broker, are to blame.
        unconfirmed: those that have not surely left.
        error: why.
    """

    def __init__(
        self, app: Celery, messages: Sequence[TaskMessage], on_failure: Callable[[Batch], None] | None = None
    ) -> None:
        self.app = app
        self.messages, self.unconfirmed = tuple(messages), list(messages)
        self.on_failure = on_failure
        self.status: BatchStatus = "pending"
        self.error: BaseException | None = None
        self._is_at_most_once = any(message.delivery == "at-most-once" for message in self.messages)
        self._lock, self._in_progress = threading.Lock(), threading.Lock()
        self._in_progress.acquire()
        self._ended = False

    def can_merge_with(self, other: Batch) -> bool:
        """Whether both may leave together; one that must not come twice shares no doubt about another."""
        return self.app is other.app and not (self._is_at_most_once or other._is_at_most_once)

    def begin(self) -> bool:
        """Take it up, unless nobody waits for it any more."""
        return self._change_status("pending", "sending")

    def withdraw(self) -> bool:
        """Keep it from leaving, if that is still possible."""
        if not self._change_status("pending", "unsent"):
            return False
        self.error = TimeoutError("the broker has not answered in time")
        self._report_failure()
        return True

    def end(self, status: BatchStatus, error: BaseException | None = None) -> None:
        """Say what became of it."""
        self.error = error
        with self._lock:
            withdrawn, self.status = self.status == "unsent", status
            if not self._ended:
                self._ended = True
                self._in_progress.release()
        if (error is not None and not withdrawn) or any(message.is_misrouted for message in self.messages):
            self._report_failure()

    def wait(self, seconds: float) -> BatchStatus:
        """What became of it within so many seconds; what nobody has taken up by then never leaves."""
        if self._in_progress.acquire(timeout=max(seconds, 0.0)):
            self._in_progress.release()
        elif not self.withdraw() and self.status == "sending":
            return "unknown"
        return self.status

    def _report_failure(self) -> None:
        """Say what its rows do not; where even that fails, they are looked after when their lease is over."""
        if self.on_failure is None:
            return
        try:
            self.on_failure(self)
        except Exception:
            logger.exception("what became of %d messages could not be put back into their rows", len(self.messages))

    def _change_status(self, old: BatchStatus, new: BatchStatus) -> bool:
        with self._lock:
            if self.status == old:
                self.status = new
                return True
            return False


LINGER_SECONDS = 0.005
"""Seconds for which what nobody waits for gathers, when others have just left."""
MAX_MERGED_MESSAGES = 200
"""Messages from which on a merged batch waits for no further batch."""

Continuation = Callable[[], None]
NextBatches = tuple[list[Batch], Continuation | None]
"""Batches, and what is left to do for them; None when all is."""


class BatchQueue:
    """Batches in the order in which they came, taken by one thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._batches: deque[Batch] = deque()
        self._continuation: tuple[Batch, Continuation] | None = None
        self._is_urgent = False
        self._taken_at: float | None = None
        self._published_at = 0.0

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and nothing that was taken is still being worked on."""
        return not self._batches and self._continuation is None and self._taken_at is None

    def busy_seconds(self) -> float:
        """Seconds since what is being worked on was taken; 0 when nothing is."""
        taken_at = self._taken_at
        return 0.0 if taken_at is None else monotonic() - taken_at

    def add(self, batch: Batch, *, urgent: bool) -> None:
        """Put in a batch; in a hurry where somebody waits for it."""
        with self._changed:
            self._batches.append(batch)
            self._is_urgent |= urgent
            self._changed.notify()

    def add_continuation(self, batch: Batch, work: Continuation) -> None:
        """Put in one that is on its way, with what is left to do; it is taken before all others."""
        with self._changed:
            self._continuation = batch, work
            self._changed.notify()

    def mark_published(self) -> None:
        """Some have just left."""
        self._published_at = monotonic()

    def take(self) -> NextBatches:
        """Wait for what is next; what was taken before is done with."""
        with self._changed:
            self._taken_at = None
            self._is_urgent &= bool(self._batches)
            self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._batches or self._continuation))
            self._changed.wait_for(self._is_due, self._published_at + LINGER_SECONDS - monotonic())
            self._taken_at = monotonic()
            return self._next_batches()

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until it is idle; whether that was so within `timeout` seconds."""
        with self._changed:
            self._is_urgent |= bool(self._batches)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self.is_idle, timeout)

    def _is_due(self) -> bool:
        """Whether what has gathered is to leave at once: many leave for little more than one."""
        return self._is_urgent or self._continuation is not None or len(self._batches) >= MAX_MERGED_MESSAGES

    def _next_batches(self) -> NextBatches:
        """What is on its way, or as many batches as may well leave together."""
        if self._continuation is not None:
            (batch, work), self._continuation = self._continuation, None
            return [batch], work
        batches = [self._batches.popleft()]
        messages = len(batches[0].messages)
        while self._batches and messages < MAX_MERGED_MESSAGES and batches[0].can_merge_with(self._batches[0]):
            messages += len(self._batches[0].messages)
            batches.append(self._batches.popleft())
        return batches, None
