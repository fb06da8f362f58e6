"""Background jobs: async handlers that `emit` starts and does not await, on the running loop or on a loop thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any

from nitro.errors import WrongThread
from nitro.infrastructure import greenlets, scope
from nitro.infrastructure.logs import get_logger
from nitro.infrastructure.threads import HANDLERS_EXIT_PRIORITY, AtExit, ForkSafe, ForkSafeLock

logger = get_logger("nitro.events")

EXIT_WAIT_SECONDS = 30.0
"""Seconds that the exit of the interpreter waits for running jobs."""

RECHECK_SECONDS = 0.05
"""Seconds after which a job in `drain_async` sees that another job has called `drain_async` too."""

DoneFuture = Future[None]
AnyFuture = asyncio.Future[Any] | Future[Any]


class LoopThread(ForkSafe):
    """An event loop on a daemon thread, started with its first coroutine; a forked child starts another one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = ForkSafeLock()
        super().__init__()

    def _reset(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop, or None before its first coroutine."""
        return self._loop

    def ensure_running(self) -> asyncio.AbstractEventLoop:
        """Returns the event loop, and starts it if it does not run yet."""
        with self._lock:
            if self._loop is None:
                self._loop = self._new_loop()
                threading.Thread(target=self._run, args=(self._loop,), name=self._name, daemon=True).start()
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        greenlets.install_loop_switcher()
        while not loop.is_closed():
            try:
                loop.run_forever()
            except BaseException:
                logger.exception("a task tried to end the event loop %s, which goes on", self._name)

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> tuple[asyncio.AbstractEventLoop, Future[Any]]:
        """Runs a coroutine on the loop, in a copy of the caller's context; returns the loop and the future."""
        loop = self.ensure_running()
        return loop, asyncio.run_coroutine_threadsafe(coroutine, loop)


class RunningJobs(ForkSafe):
    """The jobs that were started and have not ended, each with its event loop and its name in the log.

    Attributes:
        draining: jobs that wait in `drain_async`.
        has_exit_waited: whether the exit has waited already, so that a later job must be waited for at its start.
    """

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        super().__init__()

    def _reset(self) -> None:
        self.has_exit_waited = False
        self._running: dict[DoneFuture, tuple[asyncio.AbstractEventLoop, str, AnyFuture]] = {}
        self.draining: set[DoneFuture] = set()

    def add(self, done: DoneFuture, loop: asyncio.AbstractEventLoop, label: str, outcome: AnyFuture) -> None:
        """Keeps a job until it ends: asyncio itself holds only weak references to its tasks."""
        with self._lock:
            self._running[done] = loop, label, outcome
        outcome.add_done_callback(partial(self._mark_finished, done))

    def _mark_finished(self, done: DoneFuture, outcome: AnyFuture) -> None:
        """Removes a job that has ended, or whose loop was closed."""
        with self._lock:
            _, label, _ = self._running.pop(done)
        if outcome.cancelled():
            logger.warning("%s was cancelled before it finished: its event loop was closed", label)
        done.set_result(None)

    def on_loops(self, *loops: asyncio.AbstractEventLoop | None) -> dict[DoneFuture, str]:
        """Returns the running jobs on these loops.

        Inside a job it leaves out the jobs that wait in `drain_async()`: two such jobs would wait for each other.
        """
        waiting = self.draining if _current_job.get() is not None else ()
        with self._lock:
            running = list(self._running.items())
        return {done: label for done, (loop, label, _) in running if loop in loops and done not in waiting}


_current_job: ContextVar[DoneFuture | None] = ContextVar("nitro_job", default=None)
_collected_jobs: ContextVar[list[DoneFuture] | None] = ContextVar("nitro_collected", default=None)
_running_jobs = RunningJobs()
_loop_thread = LoopThread("nitro-background")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Returns the event loop that runs on this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def start_job(start: Callable[[], Coroutine[Any, Any, Any]], label: str) -> None:
    """Starts an async handler without waiting for it, on the running loop or on the background loop."""
    done: DoneFuture = Future()
    outcome: AnyFuture
    running = running_loop()
    if running is not None:
        loop, outcome = running, running.create_task(_run_job(start, done))
    else:
        loop, outcome = _loop_thread.submit(_run_job(start, done))
    collected = _collected_jobs.get()
    if collected is not None:
        collected.append(done)
    _running_jobs.add(done, loop, label, outcome)
    if running is None:
        drain_at_exit()
        if _running_jobs.has_exit_waited:
            wait([done], EXIT_WAIT_SECONDS)


async def _run_job(start: Callable[[], Coroutine[Any, Any, Any]], done: DoneFuture) -> None:
    _current_job.set(done)
    if scope.thread_state.emissions:
        await asyncio.sleep(0)  # an eager task (Python 3.12) would run inside the emission that starts it
    await start()


@contextmanager
def collect_started_jobs() -> Iterator[None]:
    """Waits at the end of the block for the jobs that were started inside, and for the jobs that they have started.

    On the thread of a running loop it does not wait: the jobs need that thread to end.
    """
    collected: list[DoneFuture] = []
    token = _collected_jobs.set(collected)
    try:
        yield
    finally:
        _collected_jobs.reset(token)
        while running_loop() is None and (running := [done for done in collected if not done.done()]):
            wait(running)


async def wait_for_collected_jobs() -> None:
    """Waits for the jobs that were started inside `collect_started_jobs()` so far, without blocking this loop."""
    while running := [done for done in _collected_jobs.get() or () if not done.done()]:
        await asyncio.wait([asyncio.wrap_future(done) for done in running])


def drain(timeout: float | None = None) -> bool:
    """Waits for the jobs on the background loop, and for the jobs that they start.

    Args:
        timeout: seconds at most; None means no limit.

    Returns:
        Whether all have ended.

    Raises:
        WrongThread: the calling thread runs an event loop; use `await drain_async()` there.
    """
    if running_loop() is not None:
        raise WrongThread("drain()", "await drain_async()")
    deadline = None if timeout is None else monotonic() + timeout
    while running := _running_jobs.on_loops(_loop_thread.loop):
        remaining = None if deadline is None else deadline - monotonic()
        if remaining is not None and remaining <= 0:
            return False
        wait(running, remaining)
    return True


async def drain_async() -> None:
    """Waits for the jobs on this loop and on the background loop, except for jobs that wait here themselves."""
    own = _current_job.get()
    if own is not None:
        _running_jobs.draining.add(own)
    try:
        while running := _running_jobs.on_loops(asyncio.get_running_loop(), _loop_thread.loop):
            # The timeout makes the loop drop jobs that have begun to wait in drain_async() meanwhile.
            await asyncio.wait([asyncio.wrap_future(done) for done in running], timeout=RECHECK_SECONDS)
    finally:
        if own is not None:
            _running_jobs.draining.discard(own)


def drain_at_exit() -> None:
    """Makes the exit of the interpreter, or of a child of multiprocessing, wait for the running jobs.

    `Event.connect` calls it for each async handler: an `atexit` function that starts the first job would be too late.
    """
    _at_exit.arm()


def _drain_or_warn() -> None:
    if not drain(EXIT_WAIT_SECONDS):
        for label in _running_jobs.on_loops(_loop_thread.loop).values():
            logger.warning(
                "%s still ran %.0f s after the end of the program and was abandoned", label, EXIT_WAIT_SECONDS
            )
    _running_jobs.has_exit_waited = True


_at_exit = AtExit(_drain_or_warn, HANDLERS_EXIT_PRIORITY)
