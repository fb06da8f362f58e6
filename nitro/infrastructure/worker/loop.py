"""Coroutines: async handlers on one event loop, kept for the life of the worker process."""

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
    """The loop on a thread of its own, so that the handlers of a thread pool share it and run at once."""

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        loop = super()._new_loop()
        loop.set_task_factory(_create_task)
        return loop


def _create_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """A task, noted with the handler in whose context it is to run; one with a fresh `Context()` is nobody's."""
    task = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    spawned = _spawned_tasks.get() if context is None else context.get(_spawned_tasks)
    if spawned is not None:
        spawned.add(task)
    return task


_loop = WorkerLoop("nitro-worker")


def run_coroutine(work: Coroutine[Any, Any, Any], handler: str) -> Any:
    """Run it to its end on the worker's loop, while this thread waits.

    What interrupts the waiting thread, such as a soft time limit, cancels the coroutine and is
    raised here when that has ended.
    """
    supervised = _run_with_cleanup(work, handler, scope.current_transaction())
    if background.running_loop() is not None:
        return _run_on_own_loop(supervised)
    run = _CoroutineRun(_loop.ensure_running())
    run.loop.call_soon_threadsafe(run.begin, supervised)
    return run.result()


class _CoroutineRun:
    """A coroutine that another thread waits for; cheaper than the two futures of `run_coroutine_threadsafe`."""

    __slots__ = ("_finished", "_task", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._finished = Lock()
        self._finished.acquire()

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Start it; called on the loop, in the context of the thread that waits."""
        self._task = self.loop.create_task(work)
        self._task.add_done_callback(lambda _task: self._finished.release())

    def result(self) -> Any:
        """Wait for its end on this thread.

        Raises:
            CancelledError: it was cancelled; the one that is an `Exception`, because this thread was not.
            BaseException: what the coroutine raises, and what interrupts the waiting.
        """
        try:
            self._finished.acquire()
        except BaseException:
            self.loop.call_soon_threadsafe(lambda: self._task is not None and self._task.cancel())
            if self._task is None or not self._task.done():  # else the lock may be ours already
                self._finished.acquire()
            raise
        assert self._task is not None
        if self._task.cancelled():
            raise CancelledError
        return self._task.result()


def _run_on_own_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it on a loop of its own while this thread, which has a running one, waits: a handler called by a handler."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, work).result()


async def _run_with_cleanup(work: Coroutine[Any, Any, Any], handler: str, opened: scope.Transaction | None) -> Any:
    """The result of a handler; its emits are waited for, and whatever else it left running is cancelled.

    Args:
        opened: the transaction of the thread that waits, in which the handler runs.
    """
    spawned: set[asyncio.Future[Any]] = set()
    _spawned_tasks.set(spawned)
    try:
        with nullcontext() if opened is None else opened.owned_by_this_thread():
            return await work
    finally:
        await background.wait_for_collected_jobs()
        if spawned:
            await _cancel_leftover(spawned, handler)


async def _cancel_leftover(spawned: set[asyncio.Future[Any]], handler: str) -> None:
    left = [task for task in spawned if not task.done()]
    for task in left:
        logger.warning("handler %s left %r running; it is cancelled", handler, task)
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def unwind_on_termination(**_signal: object) -> None:
    """Have a signal to end unwind a pool's child that is ending, so that it releases what it has locked.

    billiard keeps that signal from the main thread while a child says goodbye in the queue that all children
    share. With a second thread, as our loop's, the signal arrives nevertheless; killed there and then, the
    child would leave the queue locked, and no task of that worker would ever start again.
    """
    signal.signal(TERM_SIGNAL, lambda *_: sys.exit())
