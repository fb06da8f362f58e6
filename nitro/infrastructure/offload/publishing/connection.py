"""Line: a connection to the broker that is kept, confirms where the broker can, and never blocks for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import BatchPublishError, OperationalError

from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.broker import AMQP, broker_settings, connect_to_any
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.offload.publishing.channel import PublishChannel
from nitro.infrastructure.offload.publishing.queue import Batch
from nitro.infrastructure.offload.publishing.redis import RedisAnswerTimeout
from nitro.infrastructure.offload.publishing.templates import MessageTemplate

logger = get_logger("nitro.offload")

IDLE_SECONDS = 1.0
"""Seconds of silence after which a connection is asked whether it still stands."""

Completion = Callable[[], Exception | None]
ReadyTemplates = tuple[PublishChannel, list[MessageTemplate]]


class BrokerConnection:
    """A connection of an app; used by one thread.

    Attributes:
        app: whose broker it leads to.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._broker_settings = broker_settings(app)
        self._options = app.conf.broker_transport_options
        self._connection = app.connection_for_write()
        self._channels: dict[bool, PublishChannel] = {}
        self._last_used = 0.0

    def is_current_for(self, app: Celery) -> bool:
        """Whether it is a line to the broker of this app, as it was set when the line connected."""
        return self.app is app and (bool(self._channels) or self._broker_settings == broker_settings(app))

    def ensure_connected(self) -> None:
        """See that the broker is at the other end; nothing has been sent when this fails.

        Raises:
            Exception: it is not; what the transport raises.
        """
        if not self._channels:
            connect_to_any(self._connection, self._options)
            self._ping()
        elif monotonic() - self._last_used > IDLE_SECONDS:
            self._ping()
        self._last_used = monotonic()

    def _needs_confirms(self, messages: Iterable[TaskMessage]) -> bool:
        """Whether the broker can confirm, and is to."""
        return self._is_amqp and any(message.delivery != "at-most-once" for message in messages)

    def _channel_for(self, *, confirming: bool = True) -> PublishChannel:
        """The lane for deliveries that are to be confirmed, where the broker can, or for others."""
        confirming &= self._is_amqp
        if confirming not in self._channels:
            channel = self._connection.channel()
            self._channels[confirming] = PublishChannel(
                self.app, channel, self._is_message_error, confirming=confirming
            )
        return self._channels[confirming]

    def _ping(self) -> None:
        """One round trip, where the broker is a server."""
        channel = self._channel_for().channel
        if self._is_amqp:
            channel.basic_qos(0, 1, False)  # noqa: FBT003  # positional in amqp
        elif hasattr(channel, "client"):
            channel.client.ping()

    @property
    def _is_amqp(self) -> bool:
        return bool(self._connection.transport.driver_type == AMQP)

    def ready_templates(self, messages: Sequence[TaskMessage]) -> ReadyTemplates | None:
        """What `publish_now` needs, if all of these can leave without other code and without a wait for the broker."""
        channel = None if self._needs_confirms(messages) else self._channels.get(False)
        if channel is None or monotonic() - self._last_used > IDLE_SECONDS:
            return None
        templates = channel.ready_templates(messages)
        return None if templates is None else (channel, templates)

    def publish(self, batch: Batch) -> Exception | None:
        """Publishes its messages, takes from `batch.unconfirmed` what has left, and returns the first error."""
        try:
            return self._publish_together(batch, batch.messages)
        except Exception as error:  # noqa: BLE001  # the caller decides what it means
            return self._handle_failure(batch, error)

    def publish_now(self, batch: Batch, ready: ReadyTemplates, patience: float) -> Completion | None:
        """Publish messages that are ready, without a wait of more than `patience` seconds.

        Returns:
            What is left to do, for somebody who may wait, and the error that there was; None when all have left.
        """
        channel, templates = ready
        try:
            refusal = channel.publish(batch, batch.messages, templates, patience)
        except RedisAnswerTimeout as late:
            return partial(self._wait_for_answer, batch, channel, late)
        except (BatchPublishError, OSError, *self._connection.connection_errors) as error:
            return partial(self._handle_failure, batch, error)
        self._last_used = monotonic()
        return None if refusal is None else lambda: refusal

    def _wait_for_answer(self, batch: Batch, channel: PublishChannel, late: RedisAnswerTimeout) -> Exception | None:
        """Wait for an answer; when it cannot be had any more, nobody knows what became of the batch."""
        try:
            channel.wait_for_answer(batch, late)
        except BatchPublishError as error:
            return self._handle_failure(batch, error)
        except Exception as error:  # noqa: BLE001  # such as of a connection that was closed meanwhile
            return ConnectionResetError(f"the answer of Redis was lost: {error}")
        return None

    def _handle_failure(self, batch: Batch, error: Exception) -> Exception | None:
        if isinstance(error, SoftTimeLimitExceeded):  # of the task that emits, which a signal raises at any point
            raise error
        return error if self.is_connection_error(error) else self._publish_singly(batch, error)

    def _publish_together(self, batch: Batch, messages: Sequence[TaskMessage]) -> Exception | None:
        """Publish some in one merged batch; those that reached no queue once more, when it is declared again."""
        channel = self._channel_for(confirming=self._needs_confirms(messages))
        refusal = channel.publish(batch, messages)
        unrouted = channel.unrouted(messages)
        if not unrouted:
            return refusal
        self._reconnect()
        return self._channel_for().publish(batch, unrouted)

    def _publish_singly(self, batch: Batch, fault: Exception) -> Exception | None:
        """Find out which of them a broker that answers refuses; none is sent again that must not come twice."""
        for message in [message for message in batch.unconfirmed if message.delivery != "at-most-once"]:
            try:
                self._reconnect()
                self._publish_together(batch, [message])
            except Exception as error:  # noqa: BLE001  # the first fault is what is told
                if self.is_connection_error(error):
                    return error
        return fault if batch.unconfirmed else None

    def _reconnect(self) -> None:
        """Connect anew where an error has closed a channel; with the old one Celery forgets what it has declared."""
        if self._is_amqp:
            self.close()
            connect_to_any(self._connection, self._options)

    def _is_message_error(self, error: BaseException) -> bool:
        others = (SoftTimeLimitExceeded, *self._connection.channel_errors)
        return not self.is_connection_error(error) and not isinstance(error, others)

    def is_connection_error(self, error: BaseException) -> bool:
        """Whether the broker or the way to it is to blame, and not what was sent."""
        if isinstance(error, OperationalError | BatchPublishError):  # as which kombu raises whatever happens within
            error = error.__cause__ or error
        refused = (*self._connection.channel_errors, LookupError)  # KeyError is an error of the connection to kombu
        broken = (*self._connection.connection_errors, BatchPublishError, OperationalError, OSError)
        return isinstance(error, broken) and not isinstance(error, refused)

    def switch_server(self) -> None:
        """Hang up, and connect to another server next time, where the app names several."""
        self.close()
        self._connection.maybe_switch_next()

    def close(self) -> None:
        """Hang up, without waiting for a broker that does not answer."""
        self._channels.clear()
        try:
            self._connection.collect(socket_timeout=0.1)
        except Exception:
            logger.debug("closing a broken connection failed", exc_info=True)


def queue_sizes(app: Celery, queues: Iterable[str]) -> dict[str, int]:
    """How many messages are ready in each queue of the app's broker; 0 where there is no such queue.

    Raises:
        ConnectionError: the broker does not answer.
    """
    with app.connection_for_read() as connection:
        try:
            connect_to_any(connection, app.conf.broker_transport_options)
            return {queue: _queue_size(connection, queue) for queue in queues}
        except (*connection.connection_errors, OperationalError) as error:
            raise ConnectionError(f"the broker does not answer: {error}") from error


def _queue_size(connection: Any, queue: str) -> int:
    channel = connection.channel()
    try:
        return int(channel.queue_declare(queue, passive=True).message_count)
    except connection.channel_errors:
        return 0
    finally:
        channel.close()
