"""Caretaker: what a worker's main process does for the outbox. It beats, relays, and takes back runs that were lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Any

from celery import Celery, bootsteps
from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state
from click import ClickException, Option
from sqlalchemy.exc import InterfaceError, OperationalError

from nitro.errors import PoolStalls
from nitro.infrastructure import greenlets
from nitro.infrastructure.database import drivers, engine
from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.offload.app import queueing_app
from nitro.infrastructure.offload.declarations import declarations_by_name
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox import claims, heartbeat, operations
from nitro.infrastructure.outbox.relay import Relay
from nitro.infrastructure.outbox.versions import ensure_current
from nitro.infrastructure.outbox.writer import has_shared_database
from nitro.infrastructure.threads import PeriodicThread
from nitro.infrastructure.worker import control, deferred_writes, identity
from nitro.infrastructure.worker.request import HandlerRequest
from nitro.infrastructure.worker.watchdog import ConsumerWatchdog

logger = get_logger("nitro.worker")

HEARTBEAT_SECONDS = 3.0
"""Seconds between two beats."""
TICK_SECONDS = 1.0
"""Seconds between two looks at what is to be seen to, when nobody reports."""
STOP_CHECK_SECONDS = 60.0
"""Seconds between two looks at whether this worker is to stop, when no signal says so."""
CHECK_SECONDS = 10.0
"""Seconds between two looks at runs of this worker that it knows nothing of, and at messages that it does not get."""
GRACE_SECONDS = 25.0
"""Seconds after which a worker that is asked to stop cuts short what it runs; Kubernetes kills after 30.

Celery's `worker_soft_shutdown_timeout` is taken instead where it is set, and `LEAVE` added.
"""
SHUTDOWN_STEP_SECONDS = 3.0
"""Seconds for the last steps."""

WITHOUT_RELAY_OPTION = Option(
    ("--without-relay",), is_flag=True, help="Leave it to other workers, or to `nitro relay`, to move what waits."
)


class Supervisor(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """A worker's step that starts with its pool and ends after it."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, without_relay: bool = False, **_options: Any) -> None:
        _check_pool(worker)
        self.boot = identity.new_worker_id()
        self._worker = worker
        self._last_heartbeat = -HEARTBEAT_SECONDS
        self._monitor = heartbeat.HeartbeatMonitor(self.boot)
        self._force_shutdown_at: float | None = None
        self._waiting = 0
        self._revoked: set[str] = set()
        self._orphans: set[tuple[str, int]] = set()
        self._counted = monotonic()
        self._watchdog = ConsumerWatchdog(worker)
        self._watch, self._relay_thread = PeriodicThread("nitro-caretaker"), PeriodicThread("nitro-relay")
        self._watchdog_thread = PeriodicThread("nitro-starvation")
        self._shutdown_thread = PeriodicThread("nitro-stopping")
        self._runs_relay = not without_relay
        super().__init__(worker)

    def start(self, _worker: Any) -> None:
        """Begin, when the pool's processes are there: a thread would not survive their fork."""
        deferred_writes.set_wake_callbacks(self._watch.wake, self._relay_thread.wake)
        if not declarations_by_name:
            logger.warning("this worker knows no handler: its app imports none, and NITRO_HANDLERS names none")
        self._shutdown_thread.start(self._check_shutdown)
        worker_shutting_down.connect(self._hurry)
        worker_ready.connect(self._replace_killed)
        blueprint = self._worker.blueprint  # whose steps end in reverse, this one before the pool
        blueprint.on_stopped = partial(self._on_stopped, blueprint.on_stopped)
        app = queueing_app(self._worker.app)
        if not has_shared_database(app):
            return
        self._watch.start(self._supervise)
        self._watchdog_thread.start(self._check_consumer)
        control.relay_enabled[:] = [self._runs_relay]
        if self._runs_relay:
            self._relay_thread.start(Relay(app).tick)

    def stop(self, _worker: Any) -> None:
        """Go on: the pool stops after this, and what it leaves is seen to at the end.

        Nobody may have signalled: a broker whose folder was deleted ends a worker too, and so does `control shutdown`.
        """
        if (
            self._force_shutdown_at is None and threading.current_thread() is threading.main_thread()
        ):  # else it is others'
            self._hurry()

    terminate = stop

    def _replace_killed(self, **_signal: Any) -> None:
        """Have the pool replace processes that were killed while the worker started, as it does later.

        Celery, which looks right after this signal, would end the worker. It still does so for processes that end by
        themselves, which would do it again.
        """
        ended = [process.exitcode for process in self._processes() if process.exitcode is not None]
        if ended and all(code == -signal.SIGKILL for code in ended):
            logger.warning("pool processes that were killed while the worker started: %d; replaced", len(ended))
            self._worker.pool.maintain_pool()

    def _supervise(self) -> float:
        """On a thread that asks no broker, so that none that hangs keeps it from saying that this worker lives."""
        ensure_current()
        if monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS:
            heartbeat.record_heartbeat(self.boot, str(self._worker.hostname))
            self._last_heartbeat = monotonic()
            self._monitor.release_dead_workers()
        if monotonic() - self._counted >= CHECK_SECONDS:
            self._counted = monotonic()
            self._requeue_orphans()
        self._cancel_revoked()
        if deferred_writes.run_deferred():
            self._relay_thread.wake()
        return TICK_SECONDS

    def _check_consumer(self) -> float:
        """On a thread of its own, because it asks the broker, which may be frozen."""
        self._watchdog.look()
        return CHECK_SECONDS

    def _cancel_revoked(self) -> None:
        """`revoke` reaches a worker's memory only; here it reaches the rows, which outlive it."""
        revoked = {str(task_id) for task_id in _snapshot(state.revoked)}
        if new := revoked - self._revoked:
            operations.revoke(sorted(new))
        self._revoked = revoked

    def _requeue_orphans(self) -> None:
        """Runs that no task of this worker is about, seen so twice: whatever went wrong, none must stay for ever."""
        active = {str(request.id) for request in _snapshot(state.active_requests)}
        orphans = {run for run in claims.running_attempts(self.boot) if run[0] not in active}
        for run in orphans & self._orphans:
            claims.record_losses(claims.is_attempt(*run), "its run ended without a word")
        self._orphans = orphans

    def _hurry(self, **_signal: object) -> None:
        """Set the time; in a signal's handler, where gevent lets nobody wait, not even for a thread to start."""
        soft = float(self._worker.app.conf.worker_soft_shutdown_timeout or 0)
        self._force_shutdown_at = monotonic() + (soft + SHUTDOWN_STEP_SECONDS if soft else GRACE_SECONDS)
        self._shutdown_thread.wake()

    def _check_shutdown(self) -> float:
        """On a thread of its own; seconds until it is to look again."""
        left = STOP_CHECK_SECONDS if self._force_shutdown_at is None else self._force_shutdown_at - monotonic()
        if left > 0:
            return left
        self._force_shutdown()
        return TICK_SECONDS

    def _force_shutdown(self) -> None:
        """End the process while it is still ours to end; what it ran begins anew elsewhere.

        Not while something runs that is not tracked, which is left to end by itself.
        """
        others = sum(not _is_tracked(request) for request in _snapshot(state.active_requests))
        if others:
            if others != self._waiting:
                logger.warning("the worker goes on: %d tasks that are not tracked run still", others)
            self._waiting = others
            return
        logger.warning("the worker was asked to stop and has not; what it runs is given back")
        for process in self._processes():
            _kill(process.pid)
        # A broker that is frozen, or a handler on a thread with the lock that giving back needs, would keep this one.
        last = monotonic() + SHUTDOWN_STEP_SECONDS
        leaving = [threading.Thread(target=step, daemon=True) for step in (self._restore_unacked, self._leave)]
        for thread in leaving:
            thread.start()
        for thread in leaving:
            thread.join(max(0.0, last - monotonic()))
        os._exit(0)

    def _restore_unacked(self) -> None:
        """Give back to a broker that would not notice the messages that this worker holds, for a countdown say."""
        consumer = getattr(self._worker.consumer, "task_consumer", None)
        qos = getattr(getattr(consumer, "channel", None), "qos", None)
        try:
            if qos is not None:
                qos.restore_unacked_once()
        except Exception:
            logger.warning("messages that this worker held could not be given back", exc_info=True)

    def _processes(self) -> list[Any]:
        pool = getattr(self._worker.pool, "_pool", None)
        return [process for process in getattr(pool, "_pool", None) or () if getattr(process, "pid", None)]

    def _on_stopped(self, then: Callable[[], None]) -> None:
        then()
        self._leave()

    def _leave(self) -> None:
        """The pool has ended: give back what it was running, and leave the census."""
        self._shutdown_thread.stop(0)  # which may be the thread that waits for this one
        worker_shutting_down.disconnect(self._hurry)
        worker_ready.disconnect(self._replace_killed)
        self._relay_thread.stop(SHUTDOWN_STEP_SECONDS)
        self._watch.stop(SHUTDOWN_STEP_SECONDS)
        self._watchdog_thread.stop(0.0)  # which may be waiting for the broker
        publisher.drain(SHUTDOWN_STEP_SECONDS)
        if not has_shared_database(queueing_app(self._worker.app)):
            return
        try:
            given = claims.requeue_runs(self.boot)
            deferred_writes.run_deferred()
            heartbeat.remove_worker(self.boot)
        except (OperationalError, InterfaceError):
            logger.warning("what this worker ran is found by another one: the database is away", exc_info=True)
            return
        if given:
            logger.warning("%d deliveries were cut short and begin anew", given)


def _check_pool(worker: Any) -> None:
    """See that this worker's handlers can wait for the database and for one another.

    Raises:
        ClickException: they could not; one line on the terminal, which says the way out.
    """
    if not (greenlets.is_threading_patched() and has_shared_database(queueing_app(worker.app))):
        return
    way_out = drivers.cooperation_hint(engine())
    if way_out is not None:
        pool = worker.pool_cls.__module__.rpartition(".")[2]
        error = PoolStalls(pool, engine().driver, way_out)
        raise ClickException(str(error)) from error


def attach(app: Celery) -> None:
    """Have every worker of an app bring its caretaker."""
    app.steps["worker"].add(Supervisor)
    app.user_options["worker"].add(WITHOUT_RELAY_OPTION)


def _snapshot(changing: Iterable[Any]) -> list[Any]:
    """What is in a set to which the main thread may be adding."""
    while True:
        try:
            return list(changing)
        except RuntimeError:  # it changed while it was read
            continue


def _is_tracked(request: Any) -> bool:
    return isinstance(request, HandlerRequest) and request.tracked is not None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        logger.debug("process %d had ended", pid)
