"""Courier: publishes, and has a thread that waits for the broker, so that nobody else waits for one that is away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from nitro.infrastructure.failpoints import failpoint
from nitro.infrastructure.logs import logger_named
from nitro.infrastructure.offload.batch import Batch, Fate
from nitro.infrastructure.offload.line import Line, Ready
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.offload.tray import Tray, Work
from nitro.infrastructure.threads import MESSAGES, AtExit, ForkSafe, Lock

logger = logger_named("nitro.offload")

FIRST_WAIT = 1.0
"""Seconds that the first emit of a process that waits at all waits for the connection."""
WAIT = 0.02
"""Seconds that any later one waits for the broker's answer."""
PAUSE = (0.2, 5.0)
"""Seconds without a try after the first failure; doubled with each further one, up to so many."""
BACKLOG = 1000
"""Batches in hand from which on new ones are better left to a relay."""
EXIT_WAIT = 5.0
"""Seconds that the exit of the interpreter waits for what is in hand."""

Failed = Callable[[Batch], None]


class Courier(ForkSafe):
    """Publishes batches one after the other, over a connection of its own; after a failure it pauses."""

    def __init__(self) -> None:
        self._lock, self._carrying = Lock(), Lock()
        self._at_exit = AtExit(self._leave, MESSAGES)
        super().__init__()

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._line: Line | None = None
        self._tray = Tray()
        self._failures = 0
        self._pause_ends = 0.0
        self._waited = False

    @property
    def ready(self) -> bool:
        """Whether what is posted now will leave at once, as far as anyone knows."""
        return not self._failures and len(self._tray) < BACKLOG

    @property
    def pausing(self) -> bool:
        """Whether the broker was away a moment ago, so that it is not tried now."""
        return bool(self._failures) and monotonic() < self._pause_ends

    @property
    def hanging(self) -> bool:
        """Whether the broker has not answered for longer than anybody waits."""
        return self._tray.busy_for() > WAIT

    def post(self, app: Celery, parcels: Sequence[Parcel], failed: Failed | None = None) -> Batch:
        """Publish them soon; `failed` is called when not all have surely left, or some to other queues."""
        return self._post(Batch(app, parcels, failed), hurry=False)

    def _post(self, batch: Batch, *, hurry: bool) -> Batch:
        self._tray.add(batch, hurry=hurry)
        self._start()
        return batch

    def send(self, app: Celery, parcels: Sequence[Parcel], failed: Failed | None = None) -> Batch:
        """Publish them and wait a moment for the outcome; on this thread, if all that needs is a moment."""
        first, self._waited = not self._waited, True
        until = monotonic() + WAIT
        batch = self._publish_here(app, parcels, failed)
        if batch is None:
            seconds = FIRST_WAIT if first else 0.0 if self.hanging else WAIT
            batch = self._post(Batch(app, parcels, failed), hurry=True)
            batch.wait(seconds)
        elif batch.fate == "sending":
            batch.wait(until - monotonic())
        return batch

    def _publish_here(self, app: Celery, parcels: Sequence[Parcel], failed: Failed | None) -> Batch | None:
        """None where something else is in hand, or others' code or the broker could keep this thread waiting."""
        if self._line is None or self._failures or not self._tray.is_idle or self._carrying.is_mine:
            return None
        try:
            if not self._carrying.try_acquire():
                return None
            line = self._line
            ready = line.ready(parcels) if line is not None and line.app is app and self._tray.is_idle else None
            if line is None or ready is None:
                return None
            batch = Batch(app, parcels, failed)
            self._fly(line, batch, ready)
            return batch
        finally:
            if self._carrying.is_mine:  # asked, because a signal may raise between taking it and noting that
                self._carrying.release()

    def _fly(self, line: Line, batch: Batch, ready: Ready) -> None:
        try:
            batch.begin()
            failpoint("publishing")
            rest = line.publish_now(batch, ready, WAIT)
        except BaseException as error:  # such as a signal raises, at any point
            self._hang_up()
            batch.end("unknown", error)
            raise
        if rest is None:
            self._land([batch], batch, None, line)
        else:
            self._tray.add_begun(batch, lambda: self._land([batch], batch, rest(), line))
            self._start()

    def carry_here(self, app: Celery, parcels: Sequence[Parcel], failed: Failed | None = None) -> Batch:
        """Publish them on this thread, over a broker that cannot keep it waiting."""
        batch = Batch(app, parcels, failed)
        self._do([batch])
        return batch

    def drain(self, timeout: float) -> bool:
        """Wait until nothing is in hand; whether that was so within `timeout` seconds."""
        return self._tray.drained(timeout)

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="nitro-courier", daemon=True)
                thread.start()
                self._thread = thread
                self._at_exit.arm()

    def _leave(self) -> None:
        if not self.drain(EXIT_WAIT):
            logger.warning("%d batches are left to a relay: the broker did not take them in time", len(self._tray))

    def _run(self) -> None:
        while True:
            self._do(*self._tray.take())

    def _do(self, batches: Sequence[Batch], rest: Work | None = None) -> None:
        try:
            with self._carrying:
                self._carry(batches) if rest is None else rest()
        except Exception as error:
            logger.exception("a batch of messages failed")
            for batch in batches:
                batch.end("refused", error)
            if isinstance(error, SoftTimeLimitExceeded):  # of the task that emits
                raise

    def _carry(self, batches: Sequence[Batch]) -> None:
        app = batches[0].app
        if self.pausing:
            _withhold(batches, ConnectionError("the broker was away a moment ago"))
            return
        try:
            line = self._connected(app)
        except Exception as error:  # noqa: BLE001  # whatever a transport raises, there is no connection
            self._broke(error)
            _withhold(batches, error)
            return
        begun = [batch for batch in batches if batch.begin()]
        if begun:
            failpoint("publishing")
            alone = len(begun) == 1
            flight = begun[0] if alone else Batch(app, [parcel for batch in begun for parcel in batch.parcels])
            self._land(begun, flight, line.publish(flight), line)

    def _land(self, begun: Iterable[Batch], flight: Batch, fault: Exception | None, line: Line) -> None:
        """Say what became of the batches of a flight."""
        broken = fault is not None and line.is_broken_by(fault)
        if fault is not None and broken:
            self._broke(fault)
        else:
            self._failures = 0
            self._tray.left()
            failpoint("published")
        _tell(begun, flight, "unknown" if broken else "refused", fault)

    def _connected(self, app: Celery) -> Line:
        if self._line is None or not self._line.leads_to(app):
            self._hang_up()
            self._line = Line(app)
        self._line.check()
        return self._line

    def _broke(self, error: BaseException) -> None:
        if not self._failures:
            logger.warning("the broker is away; what is emitted waits in the outbox: %s", error)
        first, longest = PAUSE
        self._pause_ends = monotonic() + min(first * 2**self._failures, longest)
        self._failures = min(self._failures + 1, 10)
        if self._line is not None:
            self._line.move_on()

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()


def _withhold(batches: Iterable[Batch], error: BaseException) -> None:
    """Nothing of these has left."""
    for batch in batches:
        batch.end("unsent", error)


def _tell(batches: Iterable[Batch], flight: Batch, fate: Fate, fault: BaseException | None) -> None:
    """Share what became of a flight out to the batches that left with it."""
    if not flight.open:
        for batch in batches:
            batch.open = []
            batch.end("sent")
        return
    still_open = {parcel.task_id for parcel in flight.open}
    for batch in batches:
        batch.open = [parcel for parcel in batch.parcels if parcel.task_id in still_open]
        batch.end(*((fate, fault) if batch.open else ("sent", None)))


courier = Courier()
"""The one of this process."""
