"""A channel to the broker: publishes messages and records which of them the broker has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from time import monotonic
from typing import Any

from amqp.exceptions import MessageNacked  # type: ignore[import-untyped]  # no stubs
from celery import Celery

from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.publishing.frames import frames_of
from nitro.infrastructure.offload.publishing.queue import Batch
from nitro.infrastructure.offload.publishing.redis import RedisAnswerTimeout, RedisPipeline, optimize_channel
from nitro.infrastructure.offload.publishing.templates import MessageTemplate, TemplatePublisher

CONFIRM_SECONDS = 5.0
"""Seconds in which RabbitMQ must confirm all messages that were published together."""
MAX_NONBLOCKING_BYTES = 32 * 1024
"""Payload bytes that an empty socket buffer takes without blocking."""
SLOW_ERROR_SECONDS = 3.0
"""Seconds; when an error takes longer to be raised, the remaining messages are not tried."""


class PublishChannel:
    """A producer on a channel of its own.

    Args:
        confirming: whether the broker is asked to confirm messages, and to return messages that reach no queue.
        is_message_error: whether an error is about one message only, so that other messages can still be published.
    """

    def __init__(
        self, app: Celery, channel: Any, is_message_error: Callable[[BaseException], bool], *, confirming: bool
    ) -> None:
        self.channel = channel
        self._buffer = optimize_channel(channel) or frames_of(channel)
        self._is_message_error = is_message_error
        self._confirms = PublisherConfirms(channel) if confirming else None
        self._producer = app.amqp.Producer(channel, auto_declare=False)
        options = {"retry": False, "mandatory": True} if confirming else {"retry": False}
        self._templates = TemplatePublisher(app, self._producer, options, self._buffer)

    def unrouted(self, messages: Iterable[TaskMessage]) -> list[TaskMessage]:
        """Returns the messages that have reached no queue."""
        returned = self._confirms.returned if self._confirms is not None else {}
        return [message for message in messages if message.task_id in returned] if returned else []

    def ready_templates(self, messages: Sequence[TaskMessage]) -> list[MessageTemplate] | None:
        """Returns a template per message if publishing can neither run user code nor block, else None."""
        if (
            self._confirms is not None
            or sum(len(message.envelope.payload or "") for message in messages) > MAX_NONBLOCKING_BYTES
        ):
            return None
        if self._buffer is None or not self._buffer.is_open:
            return None
        templates = self._templates.find_all(messages)
        # Without a direct writer kombu may ask the broker first, such as for the bindings of a queue.
        can_block = any(template.direct_writer is None for template in templates or ())
        return None if can_block else templates

    def publish(
        self,
        batch: Batch,
        messages: Sequence[TaskMessage],
        templates: Sequence[MessageTemplate | None] = (),
        patience: float | None = None,
    ) -> Exception | None:
        """Publishes messages of a batch and removes from `batch.unconfirmed` each message that the broker has.

        Args:
            templates: the templates of the messages, if `ready_templates` has found them.
            patience: seconds to wait for the answer of Redis; None for the timeout of its connection.

        Returns:
            The first error that is about one message only.

        Raises:
            RedisAnswerTimeout: Redis has not answered in time; `wait_for_answer` waits for the answer.
            Exception: an error of the channel or of the connection.
        """
        confirms, buffer, published = self._confirms, self._buffer, set[str]()
        if confirms is not None:
            confirms.reset()
        if not templates:
            self._templates.refresh()
        is_buffered = buffer is not None
        try:
            refusal = self._publish_each(messages, templates or repeat(None), published)
            if buffer is not None:
                buffer.flush(patience)
            is_buffered = False
            if confirms is not None:
                confirms.wait(CONFIRM_SECONDS)
        finally:
            dropped = 0 if buffer is None else buffer.discard()
            if confirms is not None:
                confirms.drop(dropped)
            delivered_ids = confirms.confirmed if confirms is not None else set() if is_buffered else published
            batch.unconfirmed = [message for message in batch.unconfirmed if message.task_id not in delivered_ids]
        refused = {} if confirms is None else confirms.returned | confirms.refused
        return refusal or next(iter(refused.values()), None)

    def wait_for_answer(self, batch: Batch, timeout: RedisAnswerTimeout) -> None:
        """Waits for the answer of Redis that did not come in time.

        Raises:
            Exception: Redis has refused the batch, or its answer is lost.
        """
        assert isinstance(self._buffer, RedisPipeline)
        self._buffer.read_answers(timeout.pending)
        batch.unconfirmed = []

    def _publish_each(
        self, messages: Iterable[TaskMessage], templates: Iterable[MessageTemplate | None], published: set[str]
    ) -> Exception | None:
        """Publishes the messages one by one; a refused message does not stop the next.

        Args:
            published: the set to which the task id of each published message is added.
        """
        refusal: Exception | None = None
        for message, template in zip(messages, templates, strict=False):
            began = monotonic()
            try:
                self._templates.publish(message, template)
                published.add(message.task_id)
            except Exception as error:
                if not self._is_message_error(error):
                    raise
                refusal = refusal or error
                # Such as of a result backend that is down: each further message would wait for it as long.
                if monotonic() - began > SLOW_ERROR_SECONDS:
                    break
        return refusal


class PublisherConfirms:
    """The publisher confirms of an AMQP channel; a message is known by its `correlation_id`.

    Attributes:
        confirmed: ids of the messages that the broker has.
        returned: the error of each message that has reached no queue, by id.
        refused: the error of each message that the broker did not take, by id.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._published = 0
        self._unconfirmed: dict[int, str] = {}
        self.reset()
        channel.confirm_select()
        self._publish, channel.basic_publish = channel.basic_publish, self._publish_counted
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)

    def reset(self) -> None:
        """Clears the outcomes of earlier messages."""
        self.confirmed: set[str] = set()
        self.returned: dict[str, Exception] = {}
        self.refused: dict[str, Exception] = {}

    def wait(self, seconds: float) -> None:
        """Waits for the confirms of all messages that were published since the last wait.

        Raises:
            TimeoutError: a confirm has not come within `seconds`.
            Exception: the channel or the connection has broken.
        """
        deadline = monotonic() + seconds
        while self._unconfirmed:
            remaining = deadline - monotonic()
            if remaining <= 0:
                raise TimeoutError(
                    f"the broker has not confirmed {len(self._unconfirmed)} messages within {seconds:g} s"
                )
            self._channel.connection.drain_events(timeout=remaining)

    def drop(self, count: int) -> None:
        """Removes the last `count` messages, which were never sent."""
        for _ in range(count):
            del self._unconfirmed[self._published]
            self._published -= 1

    def _publish_counted(self, message: Any, *args: Any, **kwargs: Any) -> Any:
        self._published += 1
        self._unconfirmed[self._published] = str(message.properties.get("correlation_id"))
        return self._publish(message, *args, **kwargs)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self.confirmed |= self._pop_open(tag, multiple) - self.returned.keys()

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self.refused |= dict.fromkeys(self._pop_open(tag, multiple), MessageNacked("the broker did not take it"))

    def _on_return(self, error: Exception, _exchange: str, _routing_key: str, message: Any) -> None:
        self.returned[str(message.properties.get("correlation_id"))] = error

    def _pop_open(self, tag: int, multiple: bool) -> set[str]:
        tags = [open_tag for open_tag in self._unconfirmed if open_tag == tag or (multiple and open_tag < tag)]
        return {self._unconfirmed.pop(open_tag) for open_tag in tags}
