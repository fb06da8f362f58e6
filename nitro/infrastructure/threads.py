"""Background threads and locks, with a defined state after a fork and at the exit of the interpreter."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic
from types import TracebackType

from nitro.infrastructure.logs import get_logger

logger = get_logger("nitro.outbox")

HANDLERS_EXIT_PRIORITY, MESSAGES_EXIT_PRIORITY, JOURNAL_EXIT_PRIORITY = 100, 90, 80
"""Priorities of the exit actions: async handlers end first, because they may emit; the journal is written last."""
RETRY_SECONDS = 1.0
"""Seconds until a periodic thread repeats a step that has raised."""


class ForkSafe:
    """An object whose state is reset in a forked child, which has neither the threads of its parent nor its locks.

    `os.register_at_fork` keeps a reference, so the object is never freed.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Sets the state of a process that has not used the object yet."""
        raise NotImplementedError


class ForkSafeLock(ForkSafe):
    """A re-entrant lock, free in a forked child, also when a thread of the parent held it."""

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)

    def try_acquire(self) -> bool:
        """Acquires the lock if it is free; returns whether it was."""
        return self._lock.acquire(blocking=False)

    @property
    def is_owned(self) -> bool:
        """Whether this thread holds the lock."""
        try:
            self._condition.notify(0)  # notify raises unless this thread holds the lock; 0 wakes no thread
        except RuntimeError:
            return False
        return True

    def release(self) -> None:
        """Releases the lock after `try_acquire`."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class AtExit(ForkSafe):
    """An action that runs once at the exit of the interpreter, or of a child of multiprocessing.

    Args:
        action: function without arguments.
        priority: actions of a higher priority run first.
    """

    def __init__(self, action: Callable[[], None], priority: int) -> None:
        self._action, self._priority = action, priority
        super().__init__()

    def _reset(self) -> None:
        self._armed = False

    def arm(self) -> None:
        """Schedules the action for the exit of this process."""
        if not self._armed:
            from multiprocessing.util import Finalize  # `atexit` does not run in a child of multiprocessing

            self._armed = True
            Finalize(None, self._action, exitpriority=self._priority)


Step = Callable[[], float | None]
"""A step of work; returns the seconds until the next step, or None when no work is left."""


class PeriodicThread(ForkSafe):
    """A daemon thread that runs a step when it is woken, and when the seconds that the last step returned have passed.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = ForkSafeLock()
        super().__init__()

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._woken = threading.Condition()
        self._wake_at = 0.0
        self._stopping = self._start_requested = self._failing = False

    def start(self, step: Step) -> None:
        """Starts the thread unless it runs already."""
        with self._lock:
            self._start_requested = True
            if self._thread is None:
                self._stopping = False
                thread = threading.Thread(target=self._run, args=(step,), name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def wake(self, after: float = 0.0) -> None:
        """Lets the next step begin after at most this many seconds."""
        with self._woken:
            self._wake_at = min(self._wake_at, monotonic() + after)
            self._woken.notify()

    def stop(self, timeout: float) -> None:
        """Stops the thread, and waits at most `timeout` seconds for the step that runs."""
        with self._woken:
            self._stopping = True
            self._woken.notify()
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _run(self, step: Step) -> None:
        while not self._stopping:
            with self._woken:
                self._wake_at = float("inf")
            after = self._run_step(step)
            if after is None and self._may_end():
                return
            self.wake(after or 0.0)
            self._wait_for_wake()

    def _run_step(self, step: Step) -> float | None:
        try:
            after = step()
        except Exception:
            level = logging.DEBUG if self._failing else logging.WARNING
            logger.log(level, "%s failed and retries every second", self._name, exc_info=True)
            self._failing = True
            return RETRY_SECONDS
        if self._failing:
            logger.warning("%s works again", self._name)
            self._failing = False
        return after

    def _may_end(self) -> bool:
        """Whether `start` was not called since the last check, so that the thread may end."""
        with self._lock:
            start_requested, self._start_requested = self._start_requested, False
            if not start_requested:
                self._thread = None
            return not start_requested

    def _wait_for_wake(self) -> None:
        with self._woken:
            while not self._stopping and (seconds := self._wake_at - monotonic()) > 0:
                self._woken.wait(seconds)
