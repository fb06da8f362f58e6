"""Line: a connection to the broker that is kept, confirms where the broker can, and never blocks for ever."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError

from nitro.infrastructure.offload.confirms import Confirms
from nitro.infrastructure.offload.defaults import line_options
from nitro.infrastructure.offload.template import Templates

if TYPE_CHECKING:
    from nitro.infrastructure.offload.courier import Batch
    from nitro.infrastructure.offload.parcel import Parcel

logger = logging.getLogger("nitro.offload")

CONFIRM = 5.0
"""Seconds in which RabbitMQ has to confirm what it was sent."""
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
        self._confirms: Confirms | None = None
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
        self._confirms = Confirms(self._producer.channel) if self._is_amqp else None
        how = {"retry": False, "mandatory": True, "confirm_timeout": CONFIRM} if self._is_amqp else {"retry": False}
        self._templates = Templates(self.app, self._producer, how)

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
        try:
            return self._together(batch, batch.parcels)
        except Exception as error:  # noqa: BLE001  # the caller decides what it means
            return error if self.is_broken_by(error) else self._singly(batch, error)

    def _singly(self, batch: Batch, fault: Exception) -> Exception | None:
        """Find out which of them a broker that answers refuses; none is sent again that must not come twice."""
        for parcel in [parcel for parcel in batch.open if parcel.promise != "at-most-once"]:
            try:
                self._mend()
                self._together(batch, [parcel])
            except Exception as error:  # noqa: BLE001  # the first fault is what is told
                if self.is_broken_by(error):
                    return error
        return fault if batch.open else None

    def _mend(self) -> None:
        """Open a channel anew that an error has closed; with the old one Celery forgets what it has declared."""
        if self._is_amqp:
            self.close()
            self._open()

    def _together(self, batch: Batch, parcels: Sequence[Parcel]) -> Exception | None:
        """Publish some in one flight; those that reached no queue once more, when it is declared again.

        Returns:
            The first error that is about one message only.

        Raises:
            Exception: one that is not.
        """
        refusal = self._fly(batch, parcels)
        if self._confirms is None or not self._confirms.returned:
            return refusal
        returned = [parcel for parcel in parcels if parcel.task_id in self._confirms.returned]
        self._mend()
        return self._fly(batch, returned)

    def _fly(self, batch: Batch, parcels: Sequence[Parcel]) -> Exception | None:
        """Hand all over, then see what has become of each."""
        confirms, flown = self._confirms, list[str]()
        if confirms is not None:
            confirms.begin()
        gathered = self._producer.supports_batch_publish  # asked now: a connection that is broken supports nothing
        try:
            with self._producer.batch():
                refusal = self._hand_over(parcels, flown)
            gathered = False
            if confirms is not None:
                confirms.wait(CONFIRM)
        finally:
            left = confirms.confirmed if confirms is not None else () if gathered else flown
            batch.open = [parcel for parcel in batch.open if parcel.task_id not in left]
        refused = {} if confirms is None else confirms.returned | confirms.refused
        return refusal or next(iter(refused.values()), None)

    def _hand_over(self, parcels: Iterable[Parcel], flown: list[str]) -> Exception | None:
        """Publish one after the other; one that is refused keeps no other from leaving.

        Args:
            flown: the task ids of those that were published.
        """
        refusal: Exception | None = None
        self._templates.begin()
        for parcel in parcels:
            began = monotonic()
            try:
                self._templates.publish(parcel)
                flown.append(parcel.task_id)
            except Exception as error:
                if not self._concerns_one(error):
                    raise
                refusal = refusal or error
                if monotonic() - began > TOO_LONG:  # a result backend that is away, which each would wait for
                    break
        return refusal

    def _concerns_one(self, error: BaseException) -> bool:
        """Whether others can still be published on this channel."""
        return not self.is_broken_by(error) and not isinstance(error, self._connection.channel_errors)

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
