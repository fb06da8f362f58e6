"""Starvation: a worker that gets nothing although its queues hold messages connects to the broker anew.

RabbitMQ can forget a consumer that it still lists: when a quorum queue is deleted and declared again at once, it takes
the messages of the new queue for ones that it has delivered already (seen with 3.10). On Redis kombu counts a message
whose acknowledgement failed as one in hand for ever, and takes no more than the prefetch count of them (5.7, as read).
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

    def look(self) -> None:
        """To be called now and then; the second time that it finds the worker starving it has it connect anew."""
        was_hungry = self._was_starving
        try:
            self._was_starving = self._is_starving()
        except ConnectionError:
            logger.debug("the broker does not say what its queues hold", exc_info=True)
            self._was_starving = False
        if was_hungry and self._was_starving:
            logger.warning("the broker holds messages and delivers none of them here: connecting anew")
            self._was_starving = False
            self._worker.consumer.call_soon(_break_connection)

    def _is_starving(self) -> bool:
        """Whether nothing has come since the last look, nothing is in hand, and messages have been waiting for long."""
        received, self._last_received = self._last_received, sum(state.total_count.values())
        if received != self._last_received or self._holds_messages() or is_embedded(self._worker.app):
            return False
        consumer = getattr(self._worker.consumer, "task_consumer", None)
        queues = [queue.name for queue in consumer.queues] if consumer is not None else []
        return pending.has_long_queued(queues) and any(queue_sizes(self._worker.app, queues).values())

    def _holds_messages(self) -> bool:
        """Whether messages are in hand: being run, or held for a time or for a rate limit, which take its prefetch."""
        if state.reserved_requests or state.active_requests or state.scheduled_requests:
            return True
        buckets = list(getattr(self._worker.consumer, "task_buckets", {}).values())
        return any(bucket.contents for bucket in buckets if bucket is not None)


def _break_connection() -> None:
    """In the worker's loop, which connects anew when the connection breaks."""
    raise ConnectionError("this consumer gets nothing")
