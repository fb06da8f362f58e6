"""A real `celery -A tasks worker` process, for as long as a `with` block lasts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from uuid import uuid4

from tasks import app

STARTS_WITHIN = 25.0
STOPS_WITHIN = 10.0
"""Seconds."""


class WorkerProcess:
    """A worker with two processes in its pool, in this process's environment.

    Attributes:
        name: its node name, which no other worker has.
        log: the file that it writes to.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.name = f"shop-{uuid4().hex[:8]}@localhost"
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "2", "-n", self.name, "-l", "INFO"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    @property
    def pid(self) -> int:
        """Process id of the worker; its handlers run in children of it."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def answers(self) -> bool:
        """Whether it answers `celery inspect ping` in time."""
        return wait_until(lambda: not self.alive or self._pings(), STARTS_WITHIN) and self.alive

    def _pings(self) -> bool:
        return bool(app.control.ping(destination=[self.name], timeout=0.5))

    def stop(self) -> None:
        """End it: it may finish what runs, and is killed with its pool if it takes too long."""
        if self.alive:
            self._process.terminate()
        try:
            self._process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def wait_until(fact: Callable[[], bool], timeout: float) -> bool:
    """Whether `fact` became true within `timeout` seconds."""
    end = monotonic() + timeout
    while not fact():
        if monotonic() > end:
            return False
        sleep(0.05)
    return True
