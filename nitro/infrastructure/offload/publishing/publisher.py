"""The publisher of a process: publishes batches, on the caller's thread if that cannot block, else on its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from nitro.infrastructure.failpoints import failpoint
from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.publishing.connection import BrokerConnection, ReadyTemplates
from nitro.infrastructure.offload.publishing.queue import Batch, BatchQueue, BatchStatus, Continuation
from nitro.infrastructure.threads import MESSAGES_EXIT_PRIORITY, AtExit, ForkSafe, ForkSafeLock

logger = get_logger("nitro.offload")

FIRST_ANSWER_SECONDS = 1.0
"""Seconds that the first untracked emit of a process waits for the connection."""
ANSWER_SECONDS = 0.02
"""Seconds that each later untracked emit waits for the broker's answer."""
RETRY_PAUSE_SECONDS = (0.2, 5.0)
"""Seconds without a try after the first failure, and at most; each further failure doubles the pause."""
MAX_QUEUED_BATCHES = 1000
"""Queued batches from which on new messages are left to a relay."""
EXIT_DRAIN_SECONDS = 5.0
"""Seconds that the exit of the interpreter waits for queued batches."""

OnFailure = Callable[[Batch], None]
"""A function that is called with a batch when messages of it are unconfirmed or went to other queues."""


class Publisher(ForkSafe):
    """Publishes batches one after the other over a connection of its own, and pauses after a failure."""

    def __init__(self) -> None:
        self._lock, self._publish_lock = ForkSafeLock(), ForkSafeLock()
        self._at_exit = AtExit(self._drain_at_exit, MESSAGES_EXIT_PRIORITY)
        super().__init__()

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._connection: BrokerConnection | None = None
        self._queue = BatchQueue()
        self._failures = 0
        self._paused_until = 0.0
        self._has_waited = False

    @property
    def is_ready(self) -> bool:
        """Whether the last publish has not failed and the queue is not full."""
        return not self._failures and len(self._queue) < MAX_QUEUED_BATCHES

    @property
    def is_pausing(self) -> bool:
        """Whether it is in the pause after a failed publish."""
        return bool(self._failures) and monotonic() < self._paused_until

    @property
    def is_stalled(self) -> bool:
        """Whether the current batch has taken longer than an emit waits."""
        return self._queue.busy_seconds() > ANSWER_SECONDS

    def enqueue(self, app: Celery, messages: Sequence[TaskMessage], on_failure: OnFailure | None = None) -> Batch:
        """Queues messages for the publisher thread and returns their batch at once.

        Args:
            on_failure: called when messages are unconfirmed, or went to other queues than their rows name.
        """
        return self._enqueue(Batch(app, messages, on_failure), urgent=False)

    def _enqueue(self, batch: Batch, *, urgent: bool) -> Batch:
        self._queue.add(batch, urgent=urgent)
        self._start()
        return batch

    def publish(self, app: Celery, messages: Sequence[TaskMessage], on_failure: OnFailure | None = None) -> Batch:
        """Publishes messages and waits a moment for the outcome; on the caller's thread if that cannot block."""
        is_first, self._has_waited = not self._has_waited, True
        deadline = monotonic() + ANSWER_SECONDS
        batch = self._try_publish_here(app, messages, on_failure)
        if batch is None:
            seconds = FIRST_ANSWER_SECONDS if is_first else 0.0 if self.is_stalled else ANSWER_SECONDS
            batch = self._enqueue(Batch(app, messages, on_failure), urgent=True)
            batch.wait(seconds)
        elif batch.status == "sending":
            batch.wait(deadline - monotonic())
        return batch

    def _try_publish_here(
        self, app: Celery, messages: Sequence[TaskMessage], on_failure: OnFailure | None
    ) -> Batch | None:
        """Publishes on the caller's thread; None if batches are queued, or user code or the broker could block."""
        if self._connection is None or self._failures or not self._queue.is_idle or self._publish_lock.is_owned:
            return None
        try:
            if not self._publish_lock.try_acquire():
                return None
            connection = self._connection
            ready = (
                connection.ready_templates(messages)
                if connection is not None and connection.app is app and self._queue.is_idle
                else None
            )
            if connection is None or ready is None:
                return None
            batch = Batch(app, messages, on_failure)
            self._publish_now(connection, batch, ready)
            return batch
        finally:
            # `is_owned` and no variable: a signal handler may raise right after the lock is acquired.
            if self._publish_lock.is_owned:
                self._publish_lock.release()

    def _publish_now(self, connection: BrokerConnection, batch: Batch, ready: ReadyTemplates) -> None:
        try:
            batch.begin()
            failpoint("publishing")
            complete = connection.publish_now(batch, ready, ANSWER_SECONDS)
        except BaseException as error:  # a signal handler may raise at any point
            self._disconnect()
            batch.end("unknown", error)
            raise
        if complete is None:
            self._finish([batch], batch, None, connection)
        else:
            self._queue.add_continuation(batch, lambda: self._finish([batch], batch, complete(), connection))
            self._start()

    def publish_here(self, app: Celery, messages: Sequence[TaskMessage], on_failure: OnFailure | None = None) -> Batch:
        """Publishes messages on the caller's thread; for an embedded broker, which cannot block."""
        batch = Batch(app, messages, on_failure)
        self._process([batch])
        return batch

    def drain(self, timeout: float) -> bool:
        """Waits until all batches are done; returns whether they were within `timeout` seconds."""
        return self._queue.wait_until_idle(timeout)

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="nitro-publisher", daemon=True)
                thread.start()
                self._thread = thread
                self._at_exit.arm()

    def _drain_at_exit(self) -> None:
        if not self.drain(EXIT_DRAIN_SECONDS):
            logger.warning("%d batches are left to a relay: the broker did not take them in time", len(self._queue))

    def _run(self) -> None:
        while True:
            self._process(*self._queue.take())

    def _process(self, batches: Sequence[Batch], continuation: Continuation | None = None) -> None:
        try:
            with self._publish_lock:
                self._publish_batches(batches) if continuation is None else continuation()
        except Exception as error:
            logger.exception("a batch of messages failed")
            for batch in batches:
                batch.end("refused", error)
            if isinstance(error, SoftTimeLimitExceeded):  # of the task that emits
                raise

    def _publish_batches(self, batches: Sequence[Batch]) -> None:
        app = batches[0].app
        if self.is_pausing:
            _end_unsent(batches, ConnectionError("the broker was away a moment ago"))
            return
        try:
            connection = self._open_connection(app)
        except Exception as error:  # noqa: BLE001  # a transport may raise any error when it cannot connect
            self._record_failure(error)
            _end_unsent(batches, error)
            return
        started = [batch for batch in batches if batch.begin()]
        if started:
            failpoint("publishing")
            is_single = len(started) == 1
            merged = started[0] if is_single else Batch(app, [each for batch in started for each in batch.messages])
            self._finish(started, merged, connection.publish(merged), connection)

    def _finish(
        self, batches: Iterable[Batch], merged: Batch, error: Exception | None, connection: BrokerConnection
    ) -> None:
        """Records the outcome of a merged batch, for the publisher and for each batch in it."""
        is_broken = error is not None and connection.is_connection_error(error)
        if error is not None and is_broken:
            self._record_failure(error)
        else:
            self._failures = 0
            self._queue.mark_published()
            failpoint("published")
        _end_merged(batches, merged, "unknown" if is_broken else "refused", error)

    def _open_connection(self, app: Celery) -> BrokerConnection:
        if self._connection is None or not self._connection.is_current_for(app):
            self._disconnect()
            self._connection = BrokerConnection(app)
        self._connection.ensure_connected()
        return self._connection

    def _record_failure(self, error: BaseException) -> None:
        if not self._failures:
            logger.warning("the broker is away; what is emitted waits in the outbox: %s", error)
        first_pause, longest_pause = RETRY_PAUSE_SECONDS
        self._paused_until = monotonic() + min(first_pause * 2**self._failures, longest_pause)
        self._failures = min(self._failures + 1, 10)
        if self._connection is not None:
            self._connection.switch_server()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _end_unsent(batches: Iterable[Batch], error: BaseException) -> None:
    """Ends batches of which no message was sent."""
    for batch in batches:
        batch.end("unsent", error)


def _end_merged(batches: Iterable[Batch], merged: Batch, status: BatchStatus, error: BaseException | None) -> None:
    """Ends each batch of a merged batch with the outcome of its own messages."""
    if not merged.unconfirmed:
        for batch in batches:
            batch.unconfirmed = []
            batch.end("sent")
        return
    unconfirmed_ids = {message.task_id for message in merged.unconfirmed}
    for batch in batches:
        batch.unconfirmed = [message for message in batch.messages if message.task_id in unconfirmed_ids]
        batch.end(*((status, error) if batch.unconfirmed else ("sent", None)))


publisher = Publisher()
"""The publisher of this process."""
