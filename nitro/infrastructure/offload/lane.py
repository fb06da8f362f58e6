"""Lane: a channel of a line: what is published on it, and what becomes of each message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from time import monotonic
from typing import Any

from celery import Celery

from nitro.infrastructure.offload.batch import Batch
from nitro.infrastructure.offload.channels import Pushes, Unanswered, tune
from nitro.infrastructure.offload.confirms import Confirms
from nitro.infrastructure.offload.frames import frames_of
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.offload.template import Template, Templates

CONFIRM = 5.0
"""Seconds in which RabbitMQ has to confirm what it was sent."""
AT_ONCE = 32 * 1024
"""Bytes of payload that the buffer of a socket takes when it is empty."""
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
        self._gathering = tune(channel) or frames_of(channel)
        self._concerns_one = concerns_one
        self._confirms = Confirms(channel) if confirming else None
        self._producer = app.amqp.Producer(channel, auto_declare=False)
        how = {"mandatory": True} if confirming else {}
        self._templates = Templates(app, self._producer, {"retry": False, **how}, self._gathering)

    def returned(self, parcels: Iterable[Parcel]) -> list[Parcel]:
        """Those that have reached no queue."""
        returned = self._confirms.returned if self._confirms is not None else {}
        return [parcel for parcel in parcels if parcel.task_id in returned] if returned else []

    def ready(self, parcels: Sequence[Parcel]) -> list[Template] | None:
        """The templates of all of these, if they can leave without any other code and without a wait for the broker."""
        if self._confirms is not None or sum(len(parcel.message.payload or "") for parcel in parcels) > AT_ONCE:
            return None
        if self._gathering is None or not self._gathering.is_open:
            return None
        templates = self._templates.of(parcels)
        asks = any(each.straight is None for each in templates or ())  # the broker, such as for the bindings of a queue
        return None if asks else templates

    def publish(
        self,
        batch: Batch,
        parcels: Sequence[Parcel],
        templates: Sequence[Template | None] = (),
        patience: float | None = None,
    ) -> Exception | None:
        """Publish some of a batch and take from `batch.open` what has surely left.

        Args:
            templates: those of the parcels, if they are `ready`.
            patience: seconds for the answer of Redis; None for as long as its connection waits.

        Returns:
            The first error that is about one message only.

        Raises:
            Unanswered: nothing has surely left yet; see `answer`.
            Exception: one that is not about one message only.
        """
        confirms, gathering, flown = self._confirms, self._gathering, set[str]()
        if confirms is not None:
            confirms.begin()
        if not templates:
            self._templates.begin()
        gathered = gathering is not None
        try:
            refusal = self._hand_over(parcels, templates or repeat(None), flown)
            if gathering is not None:
                gathering.flush(patience)
            gathered = False
            if confirms is not None:
                confirms.wait(CONFIRM)
        finally:
            dropped = 0 if gathering is None else gathering.discard()
            if confirms is not None:
                confirms.drop(dropped)
            left = confirms.confirmed if confirms is not None else set() if gathered else flown
            batch.open = [parcel for parcel in batch.open if parcel.task_id not in left]
        refused = {} if confirms is None else confirms.returned | confirms.refused
        return refusal or next(iter(refused.values()), None)

    def answer(self, batch: Batch, late: Unanswered) -> None:
        """Wait for an answer that was not there in time.

        Raises:
            Exception: Redis has not taken the batch, as far as anyone knows.
        """
        assert isinstance(self._gathering, Pushes)
        self._gathering.answer(late.owed)
        batch.open = []

    def _hand_over(
        self, parcels: Iterable[Parcel], templates: Iterable[Template | None], flown: set[str]
    ) -> Exception | None:
        """Publish one after the other; one that is refused keeps no other from leaving.

        Args:
            flown: the task ids of those that were published.
        """
        refusal: Exception | None = None
        for parcel, template in zip(parcels, templates, strict=False):
            began = monotonic()
            try:
                self._templates.publish(parcel, template)
                flown.add(parcel.task_id)
            except Exception as error:
                if not self._concerns_one(error):
                    raise
                refusal = refusal or error
                if monotonic() - began > TOO_LONG:  # a result backend that is away, which each would wait for
                    break
        return refusal
