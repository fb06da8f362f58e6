"""Line: a connection to the broker that is kept, confirms where the broker can, and never blocks for ever."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError

from nitro.infrastructure.offload.defaults import line_options

if TYPE_CHECKING:
    from nitro.infrastructure.offload.courier import Batch
    from nitro.infrastructure.offload.parcel import Parcel

logger = logging.getLogger("nitro.offload")

CONFIRM = 5.0
"""Seconds in which RabbitMQ has to confirm a message."""
TOO_LONG = 3.0
"""Seconds after which an error is no longer about one message only."""
IDLE = 1.0
"""Seconds of silence after which a connection is asked whether it still stands."""


class Line:
    """A producer of an app, on a connection of its own; used by one thread.

    Attributes:
        app: whose broker it leads to.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._connection = app.connection_for_write(transport_options=line_options(app))
        self._producer: Any = None
        self._used = 0.0

    def check(self) -> None:
        """See that the broker is at the other end; nothing has been sent when this fails.

        Raises:
            Exception: it is not; what the transport raises.
        """
        if self._producer is None:
            self._open()
            self._ask()
        elif monotonic() - self._used > IDLE:
            self._ask()
        self._used = monotonic()

    def _open(self) -> None:
        self._connection.connect()
        self._producer = self.app.amqp.Producer(self._connection, auto_declare=False)

    def _ask(self) -> None:
        """One round trip, where the broker is a server."""
        channel = self._producer.channel
        if self._is_amqp:
            channel.basic_qos(0, 1, False)  # noqa: FBT003  # positional in amqp
        elif hasattr(channel, "client"):
            channel.client.ping()

    @property
    def _is_amqp(self) -> bool:
        return bool(self._connection.transport.driver_type == "amqp")

    def publish(self, batch: Batch) -> Exception | None:
        """Publish its parcels and take from `batch.open` what has surely left; the first error that there was."""
        together = self._producer.supports_batch_publish  # asked now: a connection that is broken supports nothing
        try:
            with self._producer.batch():
                return self._publish_each(batch, batch.parcels)
        except Exception as error:  # noqa: BLE001  # the caller decides what it means
            if together:
                batch.open = list(batch.parcels)
            if isinstance(error, BatchPublishError) and not self.is_broken_by(error):
                # The broker answers: find out which of them it refuses, but send none again that must not come twice.
                repeatable = [parcel for parcel in batch.parcels if parcel.promise != "at-most-once"]
                return self._publish_each(batch, repeatable) or (error if batch.open else None)
            return error

    def _publish_each(self, batch: Batch, parcels: Iterable[Parcel]) -> Exception | None:
        """Publish one after the other; one that is refused keeps no other from leaving."""
        refusal: Exception | None = None
        for parcel in parcels:
            began = monotonic()
            try:
                self._publish(parcel)
                batch.open.remove(parcel)
            except Exception as error:
                if self.is_broken_by(error):
                    raise
                refusal = refusal or error
                if monotonic() - began > TOO_LONG:  # a result backend that is away, which each would wait for
                    break
        return refusal

    def _publish(self, parcel: Parcel) -> None:
        """Publish one; where its queue is gone, declare it again."""
        how: dict[str, Any] = {"retry": False}
        if not self._is_amqp:
            parcel.publish(self.app, producer=self._producer, **how)
            return
        how |= {"mandatory": True, "confirm_timeout": CONFIRM}
        try:
            parcel.publish(self.app, producer=self._producer, **how)
        except self._connection.channel_errors:
            self.close()  # with it Celery forgets which queues it has declared
            self._open()
            parcel.publish(self.app, producer=self._producer, **how)

    def is_broken_by(self, error: BaseException) -> bool:
        """Whether the broker or the way to it is to blame, and not what was sent."""
        if isinstance(error, OperationalError | BatchPublishError):  # as which kombu raises whatever happens within
            error = error.__cause__ or error
        refused = (*self._connection.channel_errors, LookupError)  # KeyError is an error of the connection to kombu
        broken = (*self._connection.connection_errors, BatchPublishError, OperationalError, OSError)
        return isinstance(error, broken) and not isinstance(error, refused)

    def close(self) -> None:
        """Hang up, without waiting for a broker that does not answer."""
        try:
            self._connection.collect(socket_timeout=0.1)
        except Exception:
            logger.debug("closing a broken connection failed", exc_info=True)


def sizes(app: Celery, queues: Iterable[str]) -> dict[str, int]:
    """How many messages are ready in each queue of the app's broker; 0 where there is no such queue.

    Raises:
        ConnectionError: the broker does not answer.
    """
    with app.connection_for_read(transport_options=line_options(app)) as connection:
        try:
            return {queue: _size(connection, queue) for queue in queues}
        except (*connection.connection_errors, OperationalError) as error:
            raise ConnectionError(f"the broker does not answer: {error}") from error


def _size(connection: Any, queue: str) -> int:
    channel = connection.channel()
    try:
        return int(channel.queue_declare(queue, passive=True).message_count)
    except connection.channel_errors:
        return 0
    finally:
        channel.close()
