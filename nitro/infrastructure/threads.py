"""Threads that a process starts beside its program, and what becomes of their state at a fork and at the exit."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic
from types import TracebackType

from nitro.infrastructure.logs import get_logger

logger = get_logger("nitro.outbox")

HANDLERS, MESSAGES, JOURNAL = 100, 90, 80
"""Priorities of what the exit waits for: async handlers may emit, and emissions are recorded last."""
AFTER_ERROR = 1.0
"""Seconds until a periodic thread repeats a step that has raised."""


class ForkSafe:
    """An object with a state that a forked child begins anew: locks and threads of the parent are not its own.

    It lives as long as the process, because `os.register_at_fork` keeps it.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Set the state to that of a process which has done nothing yet."""
        raise NotImplementedError


class ForkSafeLock(ForkSafe):
    """A re-entrant lock; a forked child finds it open, also when a thread of the parent held it."""

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)

    def try_acquire(self) -> bool:
        """Take it if it is free; returns whether it was."""
        return self._lock.acquire(blocking=False)

    @property
    def is_owned(self) -> bool:
        """Whether this thread holds it."""
        try:
            self._condition.notify(0)  # wakes nobody; a condition lets only the thread that holds its lock do so
        except RuntimeError:
            return False
        return True

    def release(self) -> None:
        """Give back what `try_acquire` has taken."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class AtExit(ForkSafe):
    """An action that the end of the interpreter, or of a child of multiprocessing, runs once.

    Args:
        priority: actions of a higher one run first.
    """

    def __init__(self, action: Callable[[], None], priority: int) -> None:
        self._action, self._priority = action, priority
        super().__init__()

    def _reset(self) -> None:
        self._armed = False

    def arm(self) -> None:
        """Have the action run at the end of this process."""
        if not self._armed:
            from multiprocessing.util import Finalize  # `atexit` does not run in a child of multiprocessing

            self._armed = True
            Finalize(None, self._action, exitpriority=self._priority)


Step = Callable[[], float | None]
"""A step of work; returns the seconds until the next one, or None when there is none for now."""


class PeriodicThread(ForkSafe):
    """A daemon thread that takes a step when it is woken, and when the time that the last step named has passed.

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
        self._stopping = self._wanted = self._failing = False

    def start(self, step: Step) -> None:
        """Start the thread unless it runs already."""
        with self._lock:
            self._wanted = True
            if self._thread is None:
                self._stopping = False
                thread = threading.Thread(target=self._run, args=(step,), name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def wake(self, after: float = 0.0) -> None:
        """Have the next step begin within so many seconds."""
        with self._woken:
            self._wake_at = min(self._wake_at, monotonic() + after)
            self._woken.notify()

    def stop(self, timeout: float) -> None:
        """Stop the thread, and wait up to so many seconds for its present step."""
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
            after = self._take(step)
            if after is None and self._may_end():
                return
            self.wake(after or 0.0)
            self._sleep()

    def _take(self, step: Step) -> float | None:
        try:
            after = step()
        except Exception:
            level = logging.DEBUG if self._failing else logging.WARNING
            logger.log(level, "%s cannot do its work now, and tries on", self._name, exc_info=True)
            self._failing = True
            return AFTER_ERROR
        if self._failing:
            logger.warning("%s does its work again", self._name)
            self._failing = False
        return after

    def _may_end(self) -> bool:
        """Whether nobody has started the thread since the last time."""
        with self._lock:
            wanted, self._wanted = self._wanted, False
            if not wanted:
                self._thread = None
            return not wanted

    def _sleep(self) -> None:
        with self._woken:
            while not self._stopping and (left := self._wake_at - monotonic()) > 0:
                self._woken.wait(left)
