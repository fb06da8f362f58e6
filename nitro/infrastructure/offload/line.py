"""Line: a connection to the broker that is kept, confirms where the broker can, and never blocks for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import BatchPublishError, OperationalError

from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.batch import Batch
from nitro.infrastructure.offload.broker import AMQP, facts, reach
from nitro.infrastructure.offload.channels import Unanswered
from nitro.infrastructure.offload.lane import Lane
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.offload.template import Template

logger = logger_named("nitro.offload")

IDLE = 1.0
"""Seconds of silence after which a connection is asked whether it still stands."""

Rest = Callable[[], Exception | None]
Ready = tuple[Lane, list[Template]]


class Line:
    """A connection of an app; used by one thread.

    Attributes:
        app: whose broker it leads to.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._facts = facts(app)
        self._options = app.conf.broker_transport_options
        self._connection = app.connection_for_write()
        self._lanes: dict[bool, Lane] = {}
        self._used = 0.0

    def leads_to(self, app: Celery) -> bool:
        """Whether it is a line to the broker of this app, as it was set when the line connected."""
        return self.app is app and (bool(self._lanes) or self._facts == facts(app))

    def check(self) -> None:
        """See that the broker is at the other end; nothing has been sent when this fails.

        Raises:
            Exception: it is not; what the transport raises.
        """
        if not self._lanes:
            reach(self._connection, self._options)
            self._ask()
        elif monotonic() - self._used > IDLE:
            self._ask()
        self._used = monotonic()

    def _is_confirming(self, parcels: Iterable[Parcel]) -> bool:
        """Whether the broker can confirm, and is to."""
        return self._is_amqp and any(parcel.promise != "at-most-once" for parcel in parcels)

    def _lane(self, *, confirming: bool = True) -> Lane:
        """The lane for deliveries that are to be confirmed, where the broker can, or for others."""
        confirming &= self._is_amqp
        if confirming not in self._lanes:
            channel = self._connection.channel()
            self._lanes[confirming] = Lane(self.app, channel, self._concerns_one, confirming=confirming)
        return self._lanes[confirming]

    def _ask(self) -> None:
        """One round trip, where the broker is a server."""
        channel = self._lane().channel
        if self._is_amqp:
            channel.basic_qos(0, 1, False)  # noqa: FBT003  # positional in amqp
        elif hasattr(channel, "client"):
            channel.client.ping()

    @property
    def _is_amqp(self) -> bool:
        return bool(self._connection.transport.driver_type == AMQP)

    def ready(self, parcels: Sequence[Parcel]) -> Ready | None:
        """What `publish_now` needs, if all of these can leave without other code and without a wait for the broker."""
        lane = None if self._is_confirming(parcels) else self._lanes.get(False)
        if lane is None or monotonic() - self._used > IDLE:
            return None
        templates = lane.ready(parcels)
        return None if templates is None else (lane, templates)

    def publish(self, batch: Batch) -> Exception | None:
        """Publish its parcels and take from `batch.open` what has surely left; the first error that there was."""
        try:
            return self._together(batch, batch.parcels)
        except Exception as error:  # noqa: BLE001  # the caller decides what it means
            return self._failed(batch, error)

    def publish_now(self, batch: Batch, ready: Ready, patience: float) -> Rest | None:
        """Publish parcels that are ready, without a wait of more than `patience` seconds.

        Returns:
            What is left to do, for somebody who may wait, and the error that there was; None when all have left.
        """
        lane, templates = ready
        try:
            refusal = lane.publish(batch, batch.parcels, templates, patience)
        except Unanswered as late:
            return partial(self._answered, batch, lane, late)
        except (BatchPublishError, OSError, *self._connection.connection_errors) as error:
            return partial(self._failed, batch, error)
        self._used = monotonic()
        return None if refusal is None else lambda: refusal

    def _answered(self, batch: Batch, lane: Lane, late: Unanswered) -> Exception | None:
        """Wait for an answer; when it cannot be had any more, nobody knows what became of the batch."""
        try:
            lane.answer(batch, late)
        except BatchPublishError as error:
            return self._failed(batch, error)
        except Exception as error:  # noqa: BLE001  # such as of a connection that was closed meanwhile
            return ConnectionResetError(f"the answer of Redis was lost: {error}")
        return None

    def _failed(self, batch: Batch, error: Exception) -> Exception | None:
        if isinstance(error, SoftTimeLimitExceeded):  # of the task that emits, which a signal raises at any point
            raise error
        return error if self.is_broken_by(error) else self._singly(batch, error)

    def _together(self, batch: Batch, parcels: Sequence[Parcel]) -> Exception | None:
        """Publish some in one flight; those that reached no queue once more, when it is declared again."""
        lane = self._lane(confirming=self._is_confirming(parcels))
        refusal = lane.publish(batch, parcels)
        returned = lane.returned(parcels)
        if not returned:
            return refusal
        self._mend()
        return self._lane().publish(batch, returned)

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
        """Connect anew where an error has closed a channel; with the old one Celery forgets what it has declared."""
        if self._is_amqp:
            self.close()
            reach(self._connection, self._options)

    def _concerns_one(self, error: BaseException) -> bool:
        others = (SoftTimeLimitExceeded, *self._connection.channel_errors)
        return not self.is_broken_by(error) and not isinstance(error, others)

    def is_broken_by(self, error: BaseException) -> bool:
        """Whether the broker or the way to it is to blame, and not what was sent."""
        if isinstance(error, OperationalError | BatchPublishError):  # as which kombu raises whatever happens within
            error = error.__cause__ or error
        refused = (*self._connection.channel_errors, LookupError)  # KeyError is an error of the connection to kombu
        broken = (*self._connection.connection_errors, BatchPublishError, OperationalError, OSError)
        return isinstance(error, broken) and not isinstance(error, refused)

    def move_on(self) -> None:
        """Hang up, and connect to another server next time, where the app names several."""
        self.close()
        self._connection.maybe_switch_next()

    def close(self) -> None:
        """Hang up, without waiting for a broker that does not answer."""
        self._lanes.clear()
        try:
            self._connection.collect(socket_timeout=0.1)
        except Exception:
            logger.debug("closing a broken connection failed", exc_info=True)


def sizes(app: Celery, queues: Iterable[str]) -> dict[str, int]:
    """How many messages are ready in each queue of the app's broker; 0 where there is no such queue.

    Raises:
        ConnectionError: the broker does not answer.
    """
    with app.connection_for_read() as connection:
        try:
            reach(connection, app.conf.broker_transport_options)
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
