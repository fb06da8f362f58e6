"""A connection to the broker that is kept open, asks for confirms where the broker has them, and has time-outs."""

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
"""Idle seconds after which a connection is tested by a round trip before it is used."""

Completion = Callable[[], Exception | None]
"""The rest of a publish that could not end in time: waits for its end and returns its error."""
ReadyTemplates = tuple[PublishChannel, list[MessageTemplate]]


class BrokerConnection:
    """A connection to the broker of an app; one thread uses it at a time.

    Attributes:
        app: the Celery app.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._broker_settings = broker_settings(app)
        self._options = app.conf.broker_transport_options
        self._connection = app.connection_for_write()
        self._channels: dict[bool, PublishChannel] = {}
        self._last_used = 0.0

    def is_current_for(self, app: Celery) -> bool:
        """Whether it leads to this app's broker; once connected, it stays although the app's settings change."""
        return self.app is app and (bool(self._channels) or self._broker_settings == broker_settings(app))

    def ensure_connected(self) -> None:
        """Connects, or tests an idle connection; no message has been sent when it raises.

        Raises:
            Exception: the error of the transport when the broker does not answer.
        """
        if not self._channels:
            connect_to_any(self._connection, self._options)
            self._ping()
        elif monotonic() - self._last_used > IDLE_SECONDS:
            self._ping()
        self._last_used = monotonic()

    def _needs_confirms(self, messages: Iterable[TaskMessage]) -> bool:
        """Whether the broker can confirm messages, and one of these needs it."""
        return self._is_amqp and any(message.delivery != "at-most-once" for message in messages)

    def _channel_for(self, *, confirming: bool = True) -> PublishChannel:
        """Returns the channel with confirms, where the broker has them, or the channel without."""
        confirming &= self._is_amqp
        if confirming not in self._channels:
            channel = self._connection.channel()
            self._channels[confirming] = PublishChannel(
                self.app, channel, self._is_message_error, confirming=confirming
            )
        return self._channels[confirming]

    def _ping(self) -> None:
        """Makes one round trip, where the broker is a server."""
        channel = self._channel_for().channel
        if self._is_amqp:
            channel.basic_qos(0, 1, False)  # noqa: FBT003  # positional in amqp
        elif hasattr(channel, "client"):
            channel.client.ping()

    @property
    def _is_amqp(self) -> bool:
        return bool(self._connection.transport.driver_type == AMQP)

    def ready_templates(self, messages: Sequence[TaskMessage]) -> ReadyTemplates | None:
        """Returns the argument for `publish_now` if publishing can neither run user code nor block, else None."""
        channel = None if self._needs_confirms(messages) else self._channels.get(False)
        if channel is None or monotonic() - self._last_used > IDLE_SECONDS:
            return None
        templates = channel.ready_templates(messages)
        return None if templates is None else (channel, templates)

    def publish(self, batch: Batch) -> Exception | None:
        """Publishes a batch, removes delivered messages from `batch.unconfirmed`, and returns the first error."""
        try:
            return self._publish_together(batch, batch.messages)
        except Exception as error:  # noqa: BLE001  # the caller judges the error
            return self._handle_failure(batch, error)

    def publish_now(self, batch: Batch, ready: ReadyTemplates, patience: float) -> Completion | None:
        """Publishes messages by their templates, and waits for at most `patience` seconds.

        Returns:
            None when the broker has all messages, else a function that may block: it ends the work and returns the
            first error.
        """
        channel, templates = ready
        try:
            refusal = channel.publish(batch, batch.messages, templates, patience)
        except RedisAnswerTimeout as timeout:
            return partial(self._wait_for_answer, batch, channel, timeout)
        except (BatchPublishError, OSError, *self._connection.connection_errors) as error:
            return partial(self._handle_failure, batch, error)
        self._last_used = monotonic()
        return None if refusal is None else lambda: refusal

    def _wait_for_answer(self, batch: Batch, channel: PublishChannel, timeout: RedisAnswerTimeout) -> Exception | None:
        """Waits for the answer of Redis; when the answer is lost, the outcome of the batch stays unknown."""
        try:
            channel.wait_for_answer(batch, timeout)
        except BatchPublishError as error:
            return self._handle_failure(batch, error)
        except Exception as error:  # noqa: BLE001  # such as of a connection that was closed during the wait
            return ConnectionResetError(f"the answer of Redis was lost: {error}")
        return None

    def _handle_failure(self, batch: Batch, error: Exception) -> Exception | None:
        if isinstance(error, SoftTimeLimitExceeded):  # of the task that emits: a signal handler raises it at any point
            raise error
        return error if self.is_connection_error(error) else self._publish_singly(batch, error)

    def _publish_together(self, batch: Batch, messages: Sequence[TaskMessage]) -> Exception | None:
        """Publishes messages at once; a message that reached no queue is published again on a new connection."""
        channel = self._channel_for(confirming=self._needs_confirms(messages))
        refusal = channel.publish(batch, messages)
        unrouted = channel.unrouted(messages)
        if not unrouted:
            return refusal
        self._reconnect()
        return self._channel_for().publish(batch, unrouted)

    def _publish_singly(self, batch: Batch, fault: Exception) -> Exception | None:
        """Publishes the unconfirmed messages one by one, so that a message that the broker refuses stops no other.

        An at-most-once message is not sent again.
        """
        for message in [message for message in batch.unconfirmed if message.delivery != "at-most-once"]:
            try:
                self._reconnect()
                self._publish_together(batch, [message])
            except Exception as error:  # noqa: BLE001  # the caller reports `fault`, the first error
                if self.is_connection_error(error):
                    return error
        return fault if batch.unconfirmed else None

    def _reconnect(self) -> None:
        """Reconnects on AMQP, where an error closes the channel; Celery then declares exchanges and queues again."""
        if self._is_amqp:
            self.close()
            connect_to_any(self._connection, self._options)

    def _is_message_error(self, error: BaseException) -> bool:
        other_errors = (SoftTimeLimitExceeded, *self._connection.channel_errors)
        return not self.is_connection_error(error) and not isinstance(error, other_errors)

    def is_connection_error(self, error: BaseException) -> bool:
        """Whether the broker or the network has failed, rather than a message."""
        if isinstance(error, OperationalError | BatchPublishError):  # kombu wraps any error in these two
            error = error.__cause__ or error
        refused = (*self._connection.channel_errors, LookupError)  # KeyError is an error of the connection to kombu
        broken = (*self._connection.connection_errors, BatchPublishError, OperationalError, OSError)
        return isinstance(error, broken) and not isinstance(error, refused)

    def switch_server(self) -> None:
        """Closes the connection; the next one is to another server, where the app names several."""
        self.close()
        self._connection.maybe_switch_next()

    def close(self) -> None:
        """Closes the connection without waiting for a broker that does not answer."""
        self._channels.clear()
        try:
            self._connection.collect(socket_timeout=0.1)
        except Exception:
            logger.debug("closing a broken connection failed", exc_info=True)


def queue_sizes(app: Celery, queues: Iterable[str]) -> dict[str, int]:
    """Returns the number of ready messages per queue of the app's broker; 0 for a queue that does not exist.

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
