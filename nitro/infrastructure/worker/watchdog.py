"""A watchdog that reconnects a worker to the broker when it receives nothing although its queues hold messages.

RabbitMQ can stop delivering to a consumer that it still lists: when a quorum queue is deleted and declared again at
once, it treats the messages of the new queue as already delivered (seen with 3.10). On Redis kombu never releases the
prefetch slot of a message whose acknowledgement failed, and receives nothing when all slots are used (read in 5.7).
"""

from __future__ import annotations

from typing import Any

from celery.worker import state

from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.broker import is_embedded
from nitro.infrastructure.offload.publishing.connection import queue_sizes
from nitro.infrastructure.outbox import pending

logger = get_logger("nitro.worker")


class ConsumerWatchdog:
    """Watches the consumer of a worker.

    Args:
        worker: Celery's `WorkController`.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._last_received = -1
        self._was_starving = False

    def check(self) -> None:
        """Reconnects the worker if this call and the previous one find it starving; call it at an interval."""
        was_starving = self._was_starving
        try:
            self._was_starving = self._is_starving()
        except ConnectionError:
            logger.debug("the broker does not say how long its queues are", exc_info=True)
            self._was_starving = False
        if was_starving and self._was_starving:
            logger.warning("the broker holds messages and delivers none of them to this worker: reconnecting")
            self._was_starving = False
            self._worker.consumer.call_soon(_break_connection)

    def _is_starving(self) -> bool:
        """Whether nothing was received since the last check, no message is held, and messages have waited for long."""
        previous, self._last_received = self._last_received, sum(state.total_count.values())
        if previous != self._last_received or self._holds_messages() or is_embedded(self._worker.app):
            return False
        consumer = getattr(self._worker.consumer, "task_consumer", None)
        queues = [queue.name for queue in consumer.queues] if consumer is not None else []
        return pending.has_long_queued(queues) and any(queue_sizes(self._worker.app, queues).values())

    def _holds_messages(self) -> bool:
        """Whether the worker holds messages of its prefetch: running, or waiting for a countdown or rate limit."""
        if state.reserved_requests or state.active_requests or state.scheduled_requests:
            return True
        buckets = list(getattr(self._worker.consumer, "task_buckets", {}).values())
        return any(bucket.contents for bucket in buckets if bucket is not None)


def _break_connection() -> None:
    """Raises a connection error in the worker's loop, which then reconnects."""
    raise ConnectionError("the consumer receives no messages")
