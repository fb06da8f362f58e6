"""Relay: moves what waits in the outbox to the broker, and looks after what was moved. Any number may run at once."""

from __future__ import annotations

from functools import partial
from time import monotonic

from celery import Celery

from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.batch import Batch
from nitro.infrastructure.offload.carriers import publishing, within
from nitro.infrastructure.offload.courier import courier
from nitro.infrastructure.offload.line import sizes
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.outbox import backlog, retention
from nitro.infrastructure.outbox.versions import ensure_current
from nitro.infrastructure.threads import PeriodicThread

logger = logger_named("nitro.outbox")

POLL = 1.0
"""Seconds between two looks at the table, when nobody nudges."""
MOST = 500
"""Deliveries taken at a time; few while the broker may be away, to find out."""
PROBE = 10
PATIENCE = 60.0
"""Seconds that a batch may take."""
LOOK_AFTER = 2.0
"""Seconds between two looks at messages whose lease has run out."""
CALM = 90.0
"""Seconds without anything to do after which the relay of an emitter ends; longer than anything is put back for."""


class Relay:
    """The work of a relay, a step at a time, through the broker of an app."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._looked = 0.0

    def tick(self) -> float:
        """Take a step; seconds until the next one."""
        return 0.0 if self.step() else POLL

    def step(self) -> int:
        """Publish what is due, and from time to time look after what was published; how many were published."""
        ensure_current()
        if monotonic() - self._looked >= LOOK_AFTER:
            self._looked = monotonic()
            backlog.expire()
            self._look_after()
            retention.sweep()
        return 0 if courier.pausing or not backlog.due() else self._publish()

    def _look_after(self) -> None:
        if courier.pausing:
            return
        try:
            backlog.look_after(partial(sizes, self._app))
        except ConnectionError as error:
            logger.info("the broker does not say how long its queues are: %s", error)

    def _publish(self) -> int:
        parcels = backlog.take(MOST if courier.ready else PROBE, self._app)
        with within(around(parcels) for around in publishing):
            batch = courier.post(self._app, parcels, _relocate)
            if batch.wait(PATIENCE) != "sent":
                _put_back(batch)
        backlog.settle([parcel for parcel in backlog.untracked(parcels) if parcel not in batch.open], None)
        return len(parcels) - len(batch.open)


def _relocate(batch: Batch) -> None:
    backlog.relocate(batch.parcels)


def _put_back(batch: Batch) -> None:
    error = batch.error or TimeoutError(f"the broker has not answered within {PATIENCE:.0f} s")
    doubtful = [parcel for parcel in batch.open if _must_not_repeat(batch, parcel)]
    backlog.settle(doubtful, error)
    backlog.put_back([parcel for parcel in batch.open if parcel not in doubtful], error, batch.fate)


def _must_not_repeat(batch: Batch, parcel: Parcel) -> bool:
    return parcel.promise == "at-most-once" and batch.fate != "unsent"


class EmittersRelay:
    """The relay of a process that has emitted what the broker has not taken; it ends when that has left."""

    def __init__(self) -> None:
        self._thread = PeriodicThread("nitro-relay")
        self._busy = 0.0

    def start(self, app: Celery) -> None:
        """Begin, if it has not, to relay through the broker of an app."""
        self._busy = monotonic()
        self._thread.start(partial(self._tick, Relay(app)))

    def stop(self, timeout: float) -> None:
        """End it now."""
        self._thread.stop(timeout)

    def _tick(self, relay: Relay) -> float | None:
        after = relay.tick()
        if not after or not courier.ready:
            self._busy = monotonic()
        return None if monotonic() - self._busy > CALM else after


emitters = EmittersRelay()
"""The one of this process."""
