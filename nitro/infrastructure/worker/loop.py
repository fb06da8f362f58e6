"""Coroutines of async handlers, on one event loop for the whole time of the worker process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from threading import Lock
from typing import Any

from billiard.common import TERM_SIGNAL

from nitro.infrastructure import scope
from nitro.infrastructure.events import background
from nitro.infrastructure.logs import get_logger

logger = get_logger("nitro.worker")

_spawned_tasks: ContextVar[set[asyncio.Future[Any]] | None] = ContextVar("nitro_spawned", default=None)


class WorkerLoop(background.LoopThread):
    """The event loop on a thread of its own, which all handlers of a thread pool share."""

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        loop = super()._new_loop()
        loop.set_task_factory(_create_task)
        return loop


def _create_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """Creates a task, and adds it to the spawned tasks of its context's handler; an empty `Context()` has none."""
    task = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    spawned = _spawned_tasks.get() if context is None else context.get(_spawned_tasks)
    if spawned is not None:
        spawned.add(task)
    return task


_loop = WorkerLoop("nitro-worker")


def run_coroutine(work: Coroutine[Any, Any, Any], handler: str) -> Any:
    """Runs a handler's coroutine to its end on the worker's loop, while this thread waits.

    An exception that interrupts the waiting thread, such as a soft time limit, cancels the coroutine. It is raised here
    when the coroutine has ended.
    """
    supervised = _run_with_cleanup(work, handler, scope.current_transaction())
    if background.running_loop() is not None:
        return _run_on_own_loop(supervised)
    run = _CoroutineRun(_loop.ensure_running())
    run.loop.call_soon_threadsafe(run.begin, supervised)
    return run.result()


class _CoroutineRun:
    """A coroutine for which another thread waits; cheaper than the two futures of `run_coroutine_threadsafe`."""

    __slots__ = ("_finished", "_task", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._finished = Lock()
        self._finished.acquire()

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Starts the coroutine. The loop calls this in the context of the waiting thread."""
        self._task = self.loop.create_task(work)
        self._task.add_done_callback(lambda _task: self._finished.release())

    def result(self) -> Any:
        """Waits for the end of the coroutine, and returns its result.

        Raises:
            CancelledError: the coroutine was cancelled. It is the `Exception` of `concurrent.futures`, not asyncio's.
            BaseException: the coroutine raises it, or it interrupts the waiting thread.
        """
        try:
            self._finished.acquire()
        except BaseException:
            self.loop.call_soon_threadsafe(lambda: self._task is not None and self._task.cancel())
            # A done task has released the lock, and this thread may hold it already.
            if self._task is None or not self._task.done():
                self._finished.acquire()
            raise
        assert self._task is not None
        if self._task.cancelled():
            raise CancelledError
        return self._task.result()


def _run_on_own_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs the coroutine on a new loop in another thread, because this thread has a running loop (a nested handler)."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, work).result()


async def _run_with_cleanup(work: Coroutine[Any, Any, Any], handler: str, transaction: scope.Transaction | None) -> Any:
    """Returns the result of a handler's coroutine; waits for jobs that its emits started, and cancels its other tasks.

    Args:
        transaction: the transaction of the waiting thread, in which the handler runs.
    """
    spawned: set[asyncio.Future[Any]] = set()
    _spawned_tasks.set(spawned)
    try:
        with nullcontext() if transaction is None else transaction.owned_by_this_thread():
            return await work
    finally:
        await background.wait_for_collected_jobs()
        if spawned:
            await _cancel_leftover(spawned, handler)


async def _cancel_leftover(spawned: set[asyncio.Future[Any]], handler: str) -> None:
    leftover = [task for task in spawned if not task.done()]
    for task in leftover:
        logger.warning("handler %s left %r running; it is cancelled", handler, task)
        task.cancel()
    await asyncio.gather(*leftover, return_exceptions=True)


def unwind_on_termination(**_signal: object) -> None:
    """Turns SIGTERM into `SystemExit` in an ending pool process, so that it releases its locks.

    billiard blocks SIGTERM in the main thread while an ending process writes to the queue that all processes of the
    pool share. A second thread, such as this module's loop, receives the signal all the same. If it killed the process,
    the queue would stay locked, and the worker could start no further task.
    """
    signal.signal(TERM_SIGNAL, lambda *_: sys.exit())
