"""Batches of messages with their outcome, and the queue in which they wait for the publisher thread."""

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
    """A batch of messages that are published together, and its outcome.

    Attributes:
        app: the Celery app; its broker gets the messages.
        status: `unsent` when the broker has none of the messages for certain; `refused` when the fault is in the
            messages, not in the broker.
        unconfirmed: the messages that the broker may not have.
        error: the error that ended the batch, or None.
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
        """Whether both may be published together.

        An at-most-once batch is never merged: after a failure nobody could tell which of the messages were sent.
        """
        return self.app is other.app and not (self._is_at_most_once or other._is_at_most_once)

    def begin(self) -> bool:
        """Marks the batch as being sent; returns whether it was still pending."""
        return self._change_status("pending", "sending")

    def withdraw(self) -> bool:
        """Withdraws the batch if it is still pending; returns whether it was."""
        if not self._change_status("pending", "unsent"):
            return False
        self.error = TimeoutError("the broker has not answered in time")
        self._report_failure()
        return True

    def end(self, status: BatchStatus, error: BaseException | None = None) -> None:
        """Records the outcome and wakes the thread that waits for it."""
        self.error = error
        with self._lock:
            withdrawn, self.status = self.status == "unsent", status
            if not self._ended:
                self._ended = True
                self._in_progress.release()
        if (error is not None and not withdrawn) or any(message.is_misrouted for message in self.messages):
            self._report_failure()

    def wait(self, seconds: float) -> BatchStatus:
        """Waits for the outcome and returns the status; a batch that is still pending after `seconds` is withdrawn."""
        if self._in_progress.acquire(timeout=max(seconds, 0.0)):
            self._in_progress.release()
        elif not self.withdraw() and self.status == "sending":
            return "unknown"
        return self.status

    def _report_failure(self) -> None:
        """Calls `on_failure`, which updates the rows; if that raises, a relay finds the rows when their lease ends."""
        if self.on_failure is None:
            return
        try:
            self.on_failure(self)
        except Exception:
            logger.exception("the outcome of %d messages could not be put back into their rows", len(self.messages))

    def _change_status(self, old: BatchStatus, new: BatchStatus) -> bool:
        with self._lock:
            if self.status == old:
                self.status = new
                return True
            return False


LINGER_SECONDS = 0.005
"""Seconds after a publish for which batches without a waiting thread are collected, to be merged."""
MAX_MERGED_MESSAGES = 200
"""Messages from which on a merged batch takes no further batch."""

Continuation = Callable[[], None]
NextBatches = tuple[list[Batch], Continuation | None]
"""Batches, and the continuation of their publish; None for batches that were not begun."""


class BatchQueue:
    """A first-in-first-out queue of batches for one thread."""

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
        """Whether the queue is empty and the batch that was taken last is done."""
        return not self._batches and self._continuation is None and self._taken_at is None

    def busy_seconds(self) -> float:
        """Returns the seconds since the current batch was taken; 0 without one."""
        taken_at = self._taken_at
        return 0.0 if taken_at is None else monotonic() - taken_at

    def add(self, batch: Batch, *, urgent: bool) -> None:
        """Adds a batch; `urgent` when a thread waits for its outcome."""
        with self._changed:
            self._batches.append(batch)
            self._is_urgent |= urgent
            self._changed.notify()

    def add_continuation(self, batch: Batch, work: Continuation) -> None:
        """Adds a batch that is being sent, with the rest of its work; it is taken before all other batches."""
        with self._changed:
            self._continuation = batch, work
            self._changed.notify()

    def mark_published(self) -> None:
        """Notes that messages have just been published."""
        self._published_at = monotonic()

    def take(self) -> NextBatches:
        """Marks the batches that were taken last as done, then waits for the next ones and returns them."""
        with self._changed:
            self._taken_at = None
            self._is_urgent &= bool(self._batches)
            self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._batches or self._continuation))
            self._changed.wait_for(self._is_due, self._published_at + LINGER_SECONDS - monotonic())
            self._taken_at = monotonic()
            return self._next_batches()

    def wait_until_idle(self, timeout: float) -> bool:
        """Waits until the queue is idle; returns whether it was within `timeout` seconds."""
        with self._changed:
            self._is_urgent |= bool(self._batches)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self.is_idle, timeout)

    def _is_due(self) -> bool:
        """Whether the collected batches are to be published now; to publish many costs little more than one."""
        return self._is_urgent or self._continuation is not None or len(self._batches) >= MAX_MERGED_MESSAGES

    def _next_batches(self) -> NextBatches:
        """Returns the continuation, or the batches that can be merged."""
        if self._continuation is not None:
            (batch, work), self._continuation = self._continuation, None
            return [batch], work
        batches = [self._batches.popleft()]
        messages = len(batches[0].messages)
        while self._batches and messages < MAX_MERGED_MESSAGES and batches[0].can_merge_with(self._batches[0]):
            messages += len(self._batches[0].messages)
            batches.append(self._batches.popleft())
        return batches, None
