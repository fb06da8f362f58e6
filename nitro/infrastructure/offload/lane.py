"""Lane: a channel of a line: what is published on it, and what becomes of each message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from time import monotonic
from typing import Any

from celery import Celery

from nitro.infrastructure.offload.batch import Batch
from nitro.infrastructure.offload.channels import tune
from nitro.infrastructure.offload.confirms import Confirms
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.offload.template import Templates

CONFIRM = 5.0
"""Seconds in which RabbitMQ has to confirm what it was sent."""
TOO_LONG = 3.0
"""Seconds after which an error is no longer about one message only."""


class Lane:
    """A producer on a channel of its own.

    Args:
        confirming: whether the broker is asked to confirm, and to return what reaches no queue.
        concerns_one: whether an error is about one message only, so that others can still be published.
    """

    def __init__(
        self, app: Celery, channel: Any, concerns_one: Callable[[BaseException], bool], *, confirming: bool
    ) -> None:
        self.channel = channel
        tune(channel)
        self._concerns_one = concerns_one
        self._confirms = Confirms(channel) if confirming else None
        self._producer = app.amqp.Producer(channel, auto_declare=False)
        how = {"mandatory": True} if confirming else {}
        self._templates = Templates(app, self._producer, {"retry": False, **how})

    def returned(self, parcels: Iterable[Parcel]) -> list[Parcel]:
        """Those that have reached no queue."""
        returned = self._confirms.returned if self._confirms is not None else {}
        return [parcel for parcel in parcels if parcel.task_id in returned] if returned else []

    def publish(self, batch: Batch, parcels: Sequence[Parcel]) -> Exception | None:
        """Publish some of a batch and take from `batch.open` what has surely left.

        Returns:
            The first error that is about one message only.

        Raises:
            Exception: one that is not.
        """
        confirms, flown = self._confirms, set[str]()
        if confirms is not None:
            confirms.begin()
        many = len(parcels) > 1  # one message alone leaves quicker without a batch
        gathered = many and self._producer.supports_batch_publish  # asked now: a broken connection supports nothing
        try:
            with self._producer.batch() if many else nullcontext():
                refusal = self._hand_over(parcels, flown)
            gathered = False
            if confirms is not None:
                confirms.wait(CONFIRM)
        finally:
            left = confirms.confirmed if confirms is not None else set() if gathered else flown
            batch.open = [parcel for parcel in batch.open if parcel.task_id not in left]
        refused = {} if confirms is None else confirms.returned | confirms.refused
        return refusal or next(iter(refused.values()), None)

    def _hand_over(self, parcels: Iterable[Parcel], flown: set[str]) -> Exception | None:
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
                flown.add(parcel.task_id)
            except Exception as error:
                if not self._concerns_one(error):
                    raise
                refusal = refusal or error
                if monotonic() - began > TOO_LONG:  # a result backend that is away, which each would wait for
                    break
        return refusal
