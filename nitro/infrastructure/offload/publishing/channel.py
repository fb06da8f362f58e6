"""Lane: a channel of a line: what is published on it, and what becomes of each message."""

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
"""Seconds in which RabbitMQ has to confirm what it was sent."""
MAX_NONBLOCKING_BYTES = 32 * 1024
"""Bytes of payload that the buffer of a socket takes when it is empty."""
SLOW_ERROR_SECONDS = 3.0
"""Seconds after which an error is no longer about one message only."""


class PublishChannel:
    """A producer on a channel of its own.

    Args:
        confirming: whether the broker is asked to confirm, and to return what reaches no queue.
        is_message_error: whether an error is about one message only, so that others can still be published.
    """

    def __init__(
        self, app: Celery, channel: Any, is_message_error: Callable[[BaseException], bool], *, confirming: bool
    ) -> None:
        self.channel = channel
        self._gathering = optimize_channel(channel) or frames_of(channel)
        self._is_message_error = is_message_error
        self._confirms = PublisherConfirms(channel) if confirming else None
        self._producer = app.amqp.Producer(channel, auto_declare=False)
        how = {"mandatory": True} if confirming else {}
        self._templates = TemplatePublisher(app, self._producer, {"retry": False, **how}, self._gathering)

    def unrouted(self, messages: Iterable[TaskMessage]) -> list[TaskMessage]:
        """Those that have reached no queue."""
        returned = self._confirms.returned if self._confirms is not None else {}
        return [message for message in messages if message.task_id in returned] if returned else []

    def ready_templates(self, messages: Sequence[TaskMessage]) -> list[MessageTemplate] | None:
        """The templates of all of these, if they can leave without any other code and without a wait for the broker."""
        if (
            self._confirms is not None
            or sum(len(message.envelope.payload or "") for message in messages) > MAX_NONBLOCKING_BYTES
        ):
            return None
        if self._gathering is None or not self._gathering.is_open:
            return None
        templates = self._templates.find_all(messages)
        asks = any(
            each.direct_writer is None for each in templates or ()
        )  # the broker, such as for the bindings of a queue
        return None if asks else templates

    def publish(
        self,
        batch: Batch,
        messages: Sequence[TaskMessage],
        templates: Sequence[MessageTemplate | None] = (),
        patience: float | None = None,
    ) -> Exception | None:
        """Publish some of a batch and take from `batch.unconfirmed` what has surely left.

        Args:
            templates: those of the messages, if they have been looked for.
            patience: seconds for the answer of Redis; None for as long as its connection waits.

        Returns:
            The first error that is about one message only.

        Raises:
            Unanswered: nothing has surely left yet; see `wait_for_answer`.
            Exception: one that is not about one message only.
        """
        confirms, gathering, published = self._confirms, self._gathering, set[str]()
        if confirms is not None:
            confirms.reset()
        if not templates:
            self._templates.refresh()
        gathered = gathering is not None
        try:
            refusal = self._publish_each(messages, templates or repeat(None), published)
            if gathering is not None:
                gathering.flush(patience)
            gathered = False
            if confirms is not None:
                confirms.wait(CONFIRM_SECONDS)
        finally:
            dropped = 0 if gathering is None else gathering.discard()
            if confirms is not None:
                confirms.drop(dropped)
            left = confirms.confirmed if confirms is not None else set() if gathered else published
            batch.unconfirmed = [message for message in batch.unconfirmed if message.task_id not in left]
        refused = {} if confirms is None else confirms.returned | confirms.refused
        return refusal or next(iter(refused.values()), None)

    def wait_for_answer(self, batch: Batch, late: RedisAnswerTimeout) -> None:
        """Wait for an answer that was not there in time.

        Raises:
            Exception: Redis has not taken the batch, as far as anyone knows.
        """
        assert isinstance(self._gathering, RedisPipeline)
        self._gathering.read_answers(late.pending)
        batch.unconfirmed = []

    def _publish_each(
        self, messages: Iterable[TaskMessage], templates: Iterable[MessageTemplate | None], published: set[str]
    ) -> Exception | None:
        """Publish one after the other; one that is refused keeps no other from leaving.

        Args:
            published: the task ids of those that were published.
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
                if monotonic() - began > SLOW_ERROR_SECONDS:  # a result backend that is away, which each would wait for
                    break
        return refusal


class PublisherConfirms:
    """The confirms of an AMQP channel, whose messages are told apart by their `correlation_id`.

    Attributes:
        confirmed: those that the broker has.
        returned: those that have reached no queue, with the error that says so.
        refused: those that the broker did not take, with the error that says so.
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
        """Forget what became of earlier messages."""
        self.confirmed: set[str] = set()
        self.returned: dict[str, Exception] = {}
        self.refused: dict[str, Exception] = {}

    def wait(self, seconds: float) -> None:
        """Wait for those of all messages since the last wait.

        Raises:
            TimeoutError: not all have come within so many seconds.
            Exception: the channel or the connection has broken.
        """
        ends = monotonic() + seconds
        while self._unconfirmed:
            left = ends - monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"the broker has not confirmed {len(self._unconfirmed)} messages within {seconds:g} s"
                )
            self._channel.connection.drain_events(timeout=left)

    def drop(self, count: int) -> None:
        """The last so many have never been sent."""
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
        tags = [each for each in self._unconfirmed if each == tag or (multiple and each < tag)]
        return {self._unconfirmed.pop(each) for each in tags}
