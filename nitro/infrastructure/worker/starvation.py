"""Starvation: a worker that gets nothing although its queues hold messages connects to the broker anew.

RabbitMQ can forget a consumer that it still lists: when a quorum queue is deleted and declared again at once, it takes
the messages of the new queue for ones that it has delivered already (seen with 3.10). On Redis kombu counts a message
whose acknowledgement failed as one in hand for ever, and takes no more than the prefetch count of them (5.7, as read).
"""

from __future__ import annotations

from typing import Any

from celery.worker import state

from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.broker import is_embedded
from nitro.infrastructure.offload.line import sizes
from nitro.infrastructure.outbox import backlog

logger = logger_named("nitro.worker")


class Starvation:
    """Watches the consumer of a worker.

    Args:
        worker: Celery's `WorkController`.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._received = -1
        self._hungry = False

    def look(self) -> None:
        """To be called now and then; the second time that it finds the worker starving it has it connect anew."""
        was_hungry = self._hungry
        try:
            self._hungry = self._starves()
        except ConnectionError:
            logger.debug("the broker does not say what its queues hold", exc_info=True)
            self._hungry = False
        if was_hungry and self._hungry:
            logger.warning("the broker holds messages and delivers none of them here: connecting anew")
            self._hungry = False
            self._worker.consumer.call_soon(_break)

    def _starves(self) -> bool:
        """Whether nothing has come since the last look, nothing is in hand, and messages have been waiting for long."""
        received, self._received = self._received, sum(state.total_count.values())
        if received != self._received or self._holds_some() or is_embedded(self._worker.app):
            return False
        consumer = getattr(self._worker.consumer, "task_consumer", None)
        queues = [queue.name for queue in consumer.queues] if consumer is not None else []
        return backlog.waits_long(queues) and any(sizes(self._worker.app, queues).values())

    def _holds_some(self) -> bool:
        """Whether messages are in hand: being run, or held for a time or for a rate limit, which take its prefetch."""
        if state.reserved_requests or state.active_requests or state.scheduled_requests:
            return True
        buckets = list(getattr(self._worker.consumer, "task_buckets", {}).values())
        return any(bucket.contents for bucket in buckets if bucket is not None)


def _break() -> None:
    """In the worker's loop, which connects anew when the connection breaks."""
    raise ConnectionError("this consumer gets nothing")
