"""Relay: moves what waits in the outbox to the broker, and looks after what was moved. Any number may run at once."""

from __future__ import annotations

from functools import partial
from time import monotonic

from celery import Celery

from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.propagation import enter_all, publish_contexts
from nitro.infrastructure.offload.publishing.connection import queue_sizes
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.offload.publishing.queue import Batch
from nitro.infrastructure.outbox import pending, retention
from nitro.infrastructure.outbox.versions import ensure_current
from nitro.infrastructure.threads import PeriodicThread

logger = get_logger("nitro.outbox")

POLL_SECONDS = 1.0
"""Seconds between two looks at the table, when nobody nudges."""
MAX_BATCH = 500
"""Deliveries taken at a time; few while the broker may be away, to find out."""
PROBE_BATCH = 10
BATCH_TIMEOUT_SECONDS = 60.0
"""Seconds that a batch may take."""
MAINTENANCE_INTERVAL_SECONDS = 2.0
"""Seconds between two looks at messages whose lease has run out."""
IDLE_STOP_SECONDS = 90.0
"""Seconds without anything to do after which the relay of an emitter ends; longer than anything is put back for."""


class Relay:
    """The work of a relay, a step at a time, through the broker of an app."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._last_check = 0.0

    def tick(self) -> float:
        """Take a step; seconds until the next one."""
        return 0.0 if self.step() else POLL_SECONDS

    def step(self) -> int:
        """Publish what is due, and from time to time look after what was published; how many were published."""
        ensure_current()
        if monotonic() - self._last_check >= MAINTENANCE_INTERVAL_SECONDS:
            self._last_check = monotonic()
            pending.close_expired()
            self._requeue_lost()
            retention.sweep()
        return 0 if publisher.is_pausing or not pending.has_due() else self._publish()

    def _requeue_lost(self) -> None:
        if publisher.is_pausing:
            return
        try:
            pending.requeue_lost(partial(queue_sizes, self._app))
        except ConnectionError as error:
            logger.info("the broker does not say how long its queues are: %s", error)

    def _publish(self) -> int:
        messages = pending.take_due(MAX_BATCH if publisher.is_ready else PROBE_BATCH, self._app)
        with enter_all(around(messages) for around in publish_contexts):
            batch = publisher.enqueue(self._app, messages, _store_actual_queues)
            if batch.wait(BATCH_TIMEOUT_SECONDS) != "sent":
                _requeue_unconfirmed(batch)
        pending.close_untracked(
            [message for message in pending.only_untracked(messages) if message not in batch.unconfirmed], None
        )
        return len(messages) - len(batch.unconfirmed)


def _store_actual_queues(batch: Batch) -> None:
    pending.store_actual_queues(batch.messages)


def _requeue_unconfirmed(batch: Batch) -> None:
    error = batch.error or TimeoutError(f"the broker has not answered within {BATCH_TIMEOUT_SECONDS:.0f} s")
    doubtful = [message for message in batch.unconfirmed if _must_not_repeat(batch, message)]
    pending.close_untracked(doubtful, error)
    pending.requeue_unconfirmed(
        [message for message in batch.unconfirmed if message not in doubtful], error, batch.status
    )


def _must_not_repeat(batch: Batch, message: TaskMessage) -> bool:
    return message.delivery == "at-most-once" and batch.status != "unsent"


class EmitterRelay:
    """The relay of a process that has emitted what the broker has not taken; it ends when that has left."""

    def __init__(self) -> None:
        self._thread = PeriodicThread("nitro-relay")
        self._last_busy_at = 0.0

    def start(self, app: Celery) -> None:
        """Begin, if it has not, to relay through the broker of an app."""
        self._last_busy_at = monotonic()
        self._thread.start(partial(self._tick, Relay(app)))

    def stop(self, timeout: float) -> None:
        """End it now."""
        self._thread.stop(timeout)

    def _tick(self, relay: Relay) -> float | None:
        after = relay.tick()
        if not after or not publisher.is_ready:
            self._last_busy_at = monotonic()
        return None if monotonic() - self._last_busy_at > IDLE_STOP_SECONDS else after


emitter_relay = EmitterRelay()
"""The one of this process."""
