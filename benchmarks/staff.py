"""A worker process that is measured: how long it takes for so many messages, once they are all in its queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, monotonic_ns, sleep
from types import ModuleType

from celery import Celery

PATIENCE = 120.0
LOOK_AGAIN = 0.002
LINE = 21
"""Bytes of a tick."""


class Staff:
    """One worker, and the ticks of what it has run.

    Args:
        app: of the worker.
        node: its name.
        ticks: the file in which its handlers and tasks tick.
    """

    def __init__(self, app: Celery, node: str, ticks: Path) -> None:
        self._app, self._node, self._ticks = app, node, ticks
        self._queue = app.conf.task_default_queue

    def work(self, send: Callable[[], object]) -> Callable[[int], float]:
        """What sends so many messages while the worker looks away, and the seconds that it then takes for them."""

        def work(times: int) -> float:
            self._told("cancel_consumer")
            before = self.count()
            for _ in range(times):
                send()
            began = monotonic_ns()
            self._told("add_consumer")
            self.wait_for(before + times)
            return (self.last() - began) / 1e9

        return work

    def latency(self, send: Callable[[], object]) -> Callable[[int], float]:
        """What sends one message at a time to an idle worker, and the seconds until all of them have begun."""

        def work(times: int) -> float:
            total = 0
            for _ in range(times):
                before, began = self.count(), monotonic_ns()
                send()
                self.wait_for(before + 1)
                total += self.last() - began
            return total / 1e9

        return work

    def count(self) -> int:
        """How many ticks there are."""
        return self._ticks.stat().st_size // LINE if self._ticks.exists() else 0

    def last(self) -> int:
        """When the last one was, in nanoseconds of the machine's monotonic clock."""
        return max(int(line) for line in self._ticks.read_bytes()[-50 * LINE :].split())

    def wait_for(self, count: int) -> None:
        """Wait until there are so many ticks."""
        ends = monotonic() + PATIENCE
        while self.count() < count:
            assert monotonic() < ends, f"{self.count()} of {count} within {PATIENCE:.0f} s"
            sleep(LOOK_AGAIN)

    def _told(self, command: str) -> None:
        replies = getattr(self._app.control, command)(self._queue, reply=True, timeout=5.0, destination=[self._node])
        assert replies, f"the worker does not answer {command}"


@contextmanager
def staff(module: ModuleType, ticks: Path, *arguments: str) -> Iterator[Staff]:
    """A worker of the module's app with these arguments, ended at the end."""
    app, node = module.app, f"{module.app.main}@bench"
    command = [sys.executable, "-m", "celery", "-A", module.__name__, "worker", "-l", "WARNING", "-n", node, *arguments]
    worker = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        ends = monotonic() + PATIENCE
        while not app.control.ping([node], timeout=1.0):
            assert worker.poll() is None, f"the worker has ended with {worker.returncode}"
            assert monotonic() < ends, "the worker is not ready"
        yield Staff(app, node, ticks)
    finally:
        worker.terminate()
        try:
            worker.wait(30.0)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
