"""Relay: moves what waits in the outbox to the broker, and looks after what was moved. Any number may run at once."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic

from celery import Celery

from nitro.infrastructure.events.lock import Lock
from nitro.infrastructure.offload.courier import Batch, courier
from nitro.infrastructure.offload.line import sizes
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.outbox import backlog, retention
from nitro.infrastructure.outbox.census import Census
from nitro.infrastructure.outbox.versions import ensure_current

logger = logging.getLogger("nitro.outbox")

POLL = 1.0
"""Seconds between two looks at the table, when nobody nudges."""
MOST = 500
"""Deliveries taken at a time; few while the broker may be away, to find out."""
PROBE = 10
PATIENCE = 60.0
"""Seconds that a batch may take."""
LOOK_AFTER = 2.0
"""Seconds between two looks at messages whose lease has run out, and at the workers."""
CALM = 5.0
"""Seconds without anything to do after which the relay of an emitter ends; it begins again when needed."""


class Relay:
    """The work of a relay, a step at a time, through the broker of an app."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._census = Census()
        self._looked = 0.0

    def step(self) -> int:
        """Publish what is due, and from time to time look after what was published; how many were published."""
        ensure_current()
        if monotonic() - self._looked >= LOOK_AFTER:
            self._looked = monotonic()
            self._census.bury_the_dead()
            if not courier.pausing:
                backlog.look_after(partial(sizes, self._app))
            retention.sweep()
        return 0 if courier.pausing or not backlog.due() else self.publish()

    def publish(self) -> int:
        """Publish one batch of what is due; how many have surely left.

        Raises:
            ConnectionError: the broker has not taken all of them; what it has not taken waits as before.
        """
        parcels = backlog.take(MOST if courier.ready else PROBE)
        batch = courier.post(self._app, parcels)
        if batch.wait(PATIENCE) != "sent":
            _put_back(batch)
        backlog.settle([parcel for parcel in backlog.untracked(parcels) if parcel not in batch.open], None)
        return len(parcels) - len(batch.open)


def _put_back(batch: Batch) -> None:
    error = batch.error or TimeoutError(f"the broker has not answered within {PATIENCE:.0f} s")
    doubtful = [parcel for parcel in batch.open if _must_not_repeat(batch, parcel)]
    backlog.settle(doubtful, error)
    backlog.put_back([p for p in batch.open if p not in doubtful], error, refused=batch.fate == "refused")
    batch.open = list(batch.open)


def _must_not_repeat(batch: Batch, parcel: Parcel) -> bool:
    return parcel.promise == "at-most-once" and batch.fate not in ("unsent", "refused")


class RelayThread:
    """A relay on a thread of its own, which is nudged when there is something to do.

    Args:
        ends: whether it ends when there has been nothing to do for a while.
        beside: called before each step.
        relays: whether it takes steps at all, or only does what is beside them.
    """

    def __init__(self, *, ends: bool, beside: Callable[[], None] | None = None, relays: bool = True) -> None:
        self._ends, self._beside, self._relays = ends, beside, relays
        self._lock = Lock()
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._thread: threading.Thread | None = None
        self._nudged = threading.Condition()
        self._wake_at = 0.0
        self._stopping = self._wanted = False

    def start(self, app: Celery) -> None:
        """Begin, if it has not, to relay through the broker of an app."""
        with self._lock:
            self._wanted = True
            if self._thread is None:
                self._stopping = False
                self._thread = threading.Thread(target=self._run, args=(app,), name="nitro-relay", daemon=True)
                self._thread.start()

    def nudge(self, after: float = 0.0) -> None:
        """Have it look at the table, in so many seconds at the latest."""
        with self._nudged:
            self._wake_at = min(self._wake_at, monotonic() + after)
            self._nudged.notify()

    def stop(self, timeout: float) -> None:
        """End it; waits for the step that it is in."""
        with self._nudged:
            self._stopping = True
            self._nudged.notify()
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _run(self, app: Celery) -> None:
        relay, busy = Relay(app), monotonic()
        while not self._stopping:
            with self._nudged:
                self._wake_at = monotonic() + POLL
            published = self._step(relay)
            if published or not courier.ready:
                busy = monotonic()
            if self._ends and monotonic() - busy > CALM:
                if self._leave():
                    return
                busy = monotonic()
            if not published:
                self._sleep()

    def _step(self, relay: Relay) -> int:
        try:
            if self._beside is not None:
                self._beside()
            return relay.step() if self._relays else 0
        except Exception:
            logger.warning("the relay could not do its work now; it goes on", exc_info=True)
            return 0

    def _sleep(self) -> None:
        with self._nudged:
            while not self._stopping and (left := self._wake_at - monotonic()) > 0:
                self._nudged.wait(left)

    def _leave(self) -> bool:
        """Whether nobody has asked for it meanwhile."""
        with self._lock:
            wanted, self._wanted = self._wanted, False
            if not wanted:
                self._thread = None
            return not wanted


emitters = RelayThread(ends=True)
"""The one of a process that has emitted what the broker has not taken."""
