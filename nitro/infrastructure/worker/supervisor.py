"""The supervisor of a worker's main process: writes heartbeats, relays, and requeues lost runs."""

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
"""Seconds between two heartbeats."""
TICK_SECONDS = 1.0
"""Seconds between two ticks of the supervisor, unless it is woken."""
STOP_CHECK_SECONDS = 60.0
"""Seconds between two checks whether the worker is stopping, without a signal."""
CHECK_SECONDS = 10.0
"""Seconds between two checks for orphaned runs of this worker, and for a consumer that receives nothing."""
GRACE_SECONDS = 25.0
"""Seconds after which a stopping worker interrupts its running handlers; Kubernetes kills it after 30.

If `worker_soft_shutdown_timeout` is set, its value plus `SHUTDOWN_STEP_SECONDS` counts instead.
"""
SHUTDOWN_STEP_SECONDS = 3.0
"""Seconds for each of the last steps of a stopping worker."""

WITHOUT_RELAY_OPTION = Option(
    ("--without-relay",), is_flag=True, help="Leave waiting deliveries to other workers, or to `nitro relay`."
)


class Supervisor(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """A bootstep of the worker that starts with its pool, and ends after it."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, without_relay: bool = False, **_options: Any) -> None:
        _check_pool(worker)
        self.worker_id = identity.new_worker_id()
        self._worker = worker
        self._last_heartbeat = -HEARTBEAT_SECONDS
        self._monitor = heartbeat.HeartbeatMonitor(self.worker_id)
        self._force_shutdown_at: float | None = None
        self._untracked_running = 0
        self._revoked: set[str] = set()
        self._orphans: set[tuple[str, int]] = set()
        self._last_orphan_check = monotonic()
        self._watchdog = ConsumerWatchdog(worker)
        self._tick_thread, self._relay_thread = PeriodicThread("nitro-supervisor"), PeriodicThread("nitro-relay")
        self._watchdog_thread = PeriodicThread("nitro-watchdog")
        self._shutdown_thread = PeriodicThread("nitro-shutdown")
        self._runs_relay = not without_relay
        super().__init__(worker)

    def start(self, _worker: Any) -> None:
        """Starts the threads, after the pool has forked its processes: threads do not exist in a forked child."""
        deferred_writes.set_wake_callbacks(self._tick_thread.wake, self._relay_thread.wake)
        if not declarations_by_name:
            logger.warning("this worker knows no handler: its app imports none, and NITRO_HANDLERS names none")
        self._shutdown_thread.start(self._check_shutdown)
        worker_shutting_down.connect(self._arm_shutdown_timer)
        worker_ready.connect(self._replace_killed)
        blueprint = self._worker.blueprint  # it stops its steps in reverse, this one before the pool
        blueprint.on_stopped = partial(self._on_stopped, blueprint.on_stopped)
        app = queueing_app(self._worker.app)
        if not has_shared_database(app):
            return
        self._tick_thread.start(self._supervise)
        self._watchdog_thread.start(self._check_consumer)
        control.relay_enabled[:] = [self._runs_relay]
        if self._runs_relay:
            self._relay_thread.start(Relay(app).tick)

    def stop(self, _worker: Any) -> None:
        """Arms the shutdown timer, unless a signal has; the pool stops after this step, and then `_on_stopped` runs.

        A worker also stops without a signal: by `control shutdown`, or when the folder of the embedded broker is gone.
        """
        # A worker on another thread, as in a test, must not end the process.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self._force_shutdown_at is None and in_main_thread:
            self._arm_shutdown_timer()

    terminate = stop

    def _replace_killed(self, **_signal: Any) -> None:
        """Makes the pool replace processes that were killed while the worker started, as it does later.

        Celery checks for ended processes right after this signal, and would stop the worker. It still does for
        processes that ended by themselves, because new ones would end too.
        """
        ended = [process.exitcode for process in self._processes() if process.exitcode is not None]
        if ended and all(code == -signal.SIGKILL for code in ended):
            logger.warning("pool processes that were killed while the worker started: %d; replaced", len(ended))
            self._worker.pool.maintain_pool()

    def _supervise(self) -> float:
        """Does the periodic work on the database; never waits for the broker, which could delay heartbeats."""
        ensure_current()
        if monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS:
            heartbeat.record_heartbeat(self.worker_id, str(self._worker.hostname))
            self._last_heartbeat = monotonic()
            self._monitor.release_dead_workers()
        if monotonic() - self._last_orphan_check >= CHECK_SECONDS:
            self._last_orphan_check = monotonic()
            self._requeue_orphans()
        self._cancel_revoked()
        if deferred_writes.run_deferred():
            self._relay_thread.wake()
        return TICK_SECONDS

    def _check_consumer(self) -> float:
        """Checks the consumer, on a thread of its own, because the broker may not answer."""
        self._watchdog.check()
        return CHECK_SECONDS

    def _cancel_revoked(self) -> None:
        """Cancels the rows of newly revoked tasks; Celery keeps revoked ids only in the worker's memory."""
        revoked = {str(task_id) for task_id in _snapshot(state.revoked)}
        if new := revoked - self._revoked:
            operations.revoke(sorted(new))
        self._revoked = revoked

    def _requeue_orphans(self) -> None:
        """Requeues runs of this worker that had no active task in two checks in a row, so that none stays forever."""
        active = {str(request.id) for request in _snapshot(state.active_requests)}
        orphans = {run for run in claims.running_attempts(self.worker_id) if run[0] not in active}
        for run in orphans & self._orphans:
            claims.record_losses(claims.is_attempt(*run), "its task ended without closing the delivery")
        self._orphans = orphans

    def _arm_shutdown_timer(self, **_signal: object) -> None:
        """Sets the time of the forced shutdown. A signal handler under gevent must not wait, nor start a thread."""
        soft = float(self._worker.app.conf.worker_soft_shutdown_timeout or 0)
        self._force_shutdown_at = monotonic() + (soft + SHUTDOWN_STEP_SECONDS if soft else GRACE_SECONDS)
        self._shutdown_thread.wake()

    def _check_shutdown(self) -> float:
        """Forces the shutdown when its time has come; returns the seconds until the next check."""
        seconds = STOP_CHECK_SECONDS if self._force_shutdown_at is None else self._force_shutdown_at - monotonic()
        if seconds > 0:
            return seconds
        self._force_shutdown()
        return TICK_SECONDS

    def _force_shutdown(self) -> None:
        """Requeues the running deliveries, and ends the process before the platform kills it.

        It waits while an untracked task runs, because such a task could not run again.
        """
        untracked = sum(not _is_tracked(request) for request in _snapshot(state.active_requests))
        if untracked:
            if untracked != self._untracked_running:
                logger.warning("the worker stops later: %d untracked tasks are still running", untracked)
            self._untracked_running = untracked
            return
        logger.warning("the worker has not stopped in time: its running deliveries are requeued, and the process ends")
        for process in self._processes():
            _kill(process.pid)
        # Daemon threads with a deadline: a silent broker or a handler that holds a lock would block this thread.
        deadline = monotonic() + SHUTDOWN_STEP_SECONDS
        threads = [threading.Thread(target=step, daemon=True) for step in (self._restore_unacked, self._shut_down)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        os._exit(0)

    def _restore_unacked(self) -> None:
        """Returns unacknowledged messages to a broker that does not detect closed connections, such as Redis."""
        consumer = getattr(self._worker.consumer, "task_consumer", None)
        qos = getattr(getattr(consumer, "channel", None), "qos", None)
        try:
            if qos is not None:
                qos.restore_unacked_once()
        except Exception:
            logger.warning("unacknowledged messages could not be returned to the broker", exc_info=True)

    def _processes(self) -> list[Any]:
        pool = getattr(self._worker.pool, "_pool", None)
        return [process for process in getattr(pool, "_pool", None) or () if getattr(process, "pid", None)]

    def _on_stopped(self, original: Callable[[], None]) -> None:
        original()
        self._shut_down()

    def _shut_down(self) -> None:
        """Stops the threads, requeues the runs of the ended pool, and removes the worker's heartbeat."""
        self._shutdown_thread.stop(0)  # no wait: that thread may be waiting for this one
        worker_shutting_down.disconnect(self._arm_shutdown_timer)
        worker_ready.disconnect(self._replace_killed)
        self._relay_thread.stop(SHUTDOWN_STEP_SECONDS)
        self._tick_thread.stop(SHUTDOWN_STEP_SECONDS)
        self._watchdog_thread.stop(0.0)  # no wait: it may be waiting for the broker
        publisher.drain(SHUTDOWN_STEP_SECONDS)
        if not has_shared_database(queueing_app(self._worker.app)):
            return
        try:
            requeued = claims.requeue_runs(self.worker_id)
            deferred_writes.run_deferred()
            heartbeat.remove_worker(self.worker_id)
        except (OperationalError, InterfaceError):
            logger.warning("the database is down: another worker will requeue the runs of this one", exc_info=True)
            return
        if requeued:
            logger.warning("%d deliveries were interrupted and requeued", requeued)


def _check_pool(worker: Any) -> None:
    """Checks that no wait for the database blocks a gevent or eventlet pool.

    Raises:
        ClickException: the database driver blocks; the message names the remedy.
    """
    if not (greenlets.is_threading_patched() and has_shared_database(queueing_app(worker.app))):
        return
    hint = drivers.cooperation_hint(engine())
    if hint is not None:
        pool = worker.pool_cls.__module__.rpartition(".")[2]
        error = PoolStalls(pool, engine().driver, hint)
        raise ClickException(str(error)) from error


def attach(app: Celery) -> None:
    """Adds the step and its option to every worker of an app."""
    app.steps["worker"].add(Supervisor)
    app.user_options["worker"].add(WITHOUT_RELAY_OPTION)


def _snapshot(items: Iterable[Any]) -> list[Any]:
    """Returns the items of a set that the main thread may be changing."""
    while True:
        try:
            return list(items)
        except RuntimeError:  # it changed while it was read
            continue


def _is_tracked(request: Any) -> bool:
    return isinstance(request, HandlerRequest) and request.tracked_emission is not None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        logger.debug("process %d had ended", pid)
