"""Relays publish waiting deliveries of the outbox and requeue lost messages. Any number may run at once."""

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
"""Seconds between two queries for due deliveries, unless the thread is woken."""
MAX_BATCH = 500
"""Deliveries taken at a time."""
PROBE_BATCH = 10
"""Deliveries taken at a time while the broker may be away."""
BATCH_TIMEOUT_SECONDS = 60.0
"""Seconds that the relay waits until a batch is sent."""
MAINTENANCE_INTERVAL_SECONDS = 2.0
"""Seconds between two checks for expired deliveries and lost messages."""
IDLE_STOP_SECONDS = 90.0
"""Idle seconds after which an emitter's relay stops. Must exceed the longest retry delay of a publication (60 s)."""


class Relay:
    """The work of a relay, step by step, through the broker of an app."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._last_check = 0.0

    def tick(self) -> float:
        """Takes a step, and returns the seconds until the next one."""
        return 0.0 if self.step() else POLL_SECONDS

    def step(self) -> int:
        """Publishes due deliveries and returns their number; does the maintenance when its interval has passed."""
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
    unrepeatable = [message for message in batch.unconfirmed if _must_not_repeat(batch, message)]
    pending.close_untracked(unrepeatable, error)
    pending.requeue_unconfirmed(
        [message for message in batch.unconfirmed if message not in unrepeatable], error, batch.status
    )


def _must_not_repeat(batch: Batch, message: TaskMessage) -> bool:
    return message.delivery == "at-most-once" and batch.status != "unsent"


class EmitterRelay:
    """The relay thread of an emitter whose messages the broker has not taken; it stops when it is idle."""

    def __init__(self) -> None:
        self._thread = PeriodicThread("nitro-relay")
        self._last_busy_at = 0.0

    def start(self, app: Celery) -> None:
        """Starts the thread, unless it runs, and relays through the broker of an app."""
        self._last_busy_at = monotonic()
        self._thread.start(partial(self._tick, Relay(app)))

    def stop(self, timeout: float) -> None:
        """Stops the thread, and waits at most `timeout` seconds for its end."""
        self._thread.stop(timeout)

    def _tick(self, relay: Relay) -> float | None:
        pause = relay.tick()
        if not pause or not publisher.is_ready:
            self._last_busy_at = monotonic()
        return None if monotonic() - self._last_busy_at > IDLE_STOP_SECONDS else pause


emitter_relay = EmitterRelay()
"""The relay of this process, unless it is a worker."""
