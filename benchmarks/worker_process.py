"""A measured worker process: the seconds that it takes for messages that are all in its queue already."""

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

from benchmarks.measure import TimedWork

TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.002
LINE_BYTES = 21
"""Bytes of one line of the counter file."""


class WorkerProcess:
    """A worker process, and the counter file of its handlers and tasks.

    Args:
        app: of the worker.
        node: the worker's node name.
        counter: file to which each handler and each task appends a line.
    """

    def __init__(self, app: Celery, node: str, counter: Path) -> None:
        self._app, self._node, self._counter = app, node, counter
        self._queue = app.conf.task_default_queue

    def throughput(self, send: Callable[[], object]) -> TimedWork:
        """Returns work that sends messages while the worker consumes nothing, and measures until the worker ran all."""

        def work(times: int) -> float:
            self._control("cancel_consumer")
            count_before = self.count()
            for _ in range(times):
                send()
            start = monotonic_ns()
            self._control("add_consumer")
            self.wait_for(count_before + times)
            return (self.last_time() - start) / 1e9

        return work

    def latency(self, send: Callable[[], object]) -> TimedWork:
        """Returns work that sends one message at a time to an idle worker, and measures until its run begins."""

        def work(times: int) -> float:
            total = 0
            for _ in range(times):
                count_before, start = self.count(), monotonic_ns()
                send()
                self.wait_for(count_before + 1)
                total += self.last_time() - start
            return total / 1e9

        return work

    def count(self) -> int:
        """Returns the number of runs in the counter file."""
        return self._counter.stat().st_size // LINE_BYTES if self._counter.exists() else 0

    def last_time(self) -> int:
        """Returns the time of the last run, in nanoseconds of the machine's monotonic clock."""
        return max(int(line) for line in self._counter.read_bytes()[-50 * LINE_BYTES :].split())

    def wait_for(self, count: int) -> None:
        """Waits until the counter file has this number of runs."""
        deadline = monotonic() + TIMEOUT_SECONDS
        while self.count() < count:
            assert monotonic() < deadline, f"{self.count()} of {count} within {TIMEOUT_SECONDS:.0f} s"
            sleep(POLL_SECONDS)

    def _control(self, command: str) -> None:
        replies = getattr(self._app.control, command)(self._queue, reply=True, timeout=5.0, destination=[self._node])
        assert replies, f"the worker does not answer {command}"


@contextmanager
def start_worker(module: ModuleType, counter: Path, *arguments: str) -> Iterator[WorkerProcess]:
    """Starts a worker of the module's app with these arguments, and stops it after the block."""
    app, node = module.app, f"{module.app.main}@bench"
    command = [sys.executable, "-m", "celery", "-A", module.__name__, "worker", "-l", "WARNING", "-n", node, *arguments]
    worker = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = monotonic() + TIMEOUT_SECONDS
        while not app.control.ping([node], timeout=1.0):
            assert worker.poll() is None, f"the worker has ended with {worker.returncode}"
            assert monotonic() < deadline, "the worker is not ready"
        yield WorkerProcess(app, node, counter)
    finally:
        worker.terminate()
        try:
            worker.wait(30.0)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
