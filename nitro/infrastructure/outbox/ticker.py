"""Ticker: a thread that takes a step when it is nudged, and again and again without."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic

from nitro.infrastructure.events.lock import Lock
from nitro.infrastructure.logs import logger_named

logger = logger_named("nitro.outbox")

Step = Callable[[], float | None]
"""One step of work; seconds until the next one, or None when there is none for now."""

AFTER_ERROR = 1.0


class Ticker:
    """Steps on a thread of its own, which a forked child does not have.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._thread: threading.Thread | None = None
        self._nudged = threading.Condition()
        self._wake_at = 0.0
        self._stopping = self._wanted = self._failing = False

    def start(self, step: Step) -> None:
        """Begin, if it does not run already."""
        with self._lock:
            self._wanted = True
            if self._thread is None:
                self._stopping = False
                thread = threading.Thread(target=self._run, args=(step,), name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def nudge(self, after: float = 0.0) -> None:
        """Have it take a step in so many seconds at the latest."""
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

    def _run(self, step: Step) -> None:
        while not self._stopping:
            with self._nudged:
                self._wake_at = float("inf")
            after = self._taken(step)
            if after is None and self._ends():
                return
            self.nudge(after or 0.0)
            self._sleep()

    def _taken(self, step: Step) -> float | None:
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

    def _ends(self) -> bool:
        """Whether nobody has asked for it since the last time."""
        with self._lock:
            wanted, self._wanted = self._wanted, False
            if not wanted:
                self._thread = None
            return not wanted

    def _sleep(self) -> None:
        with self._nudged:
            while not self._stopping and (left := self._wake_at - monotonic()) > 0:
                self._nudged.wait(left)
