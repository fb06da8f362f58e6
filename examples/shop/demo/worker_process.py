"""A real `celery -A tasks worker` process that runs during a `with` block."""

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

START_SECONDS = 25.0
STOP_SECONDS = 10.0


class WorkerProcess:
    """A worker with two processes in its pool and the environment of this process.

    Attributes:
        name: a unique node name.
        log: the worker's log file.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.name = f"shop-{uuid4().hex[:8]}@localhost"
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "2", "-n", self.name, "-l", "INFO"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    @property
    def pid(self) -> int:
        """The process id of the worker. Handlers run in its child processes."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the worker still runs."""
        return self._process.poll() is None

    def answers(self) -> bool:
        """Waits for the worker; returns whether it answers `celery inspect ping` in time."""
        return wait_until(lambda: not self.alive or self._pings(), START_SECONDS) and self.alive

    def _pings(self) -> bool:
        return bool(app.control.ping(destination=[self.name], timeout=0.5))

    def stop(self) -> None:
        """Stops the worker after its running handlers; kills it and its pool after `STOP_SECONDS`."""
        if self.alive:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def tail(self, lines: int = 30) -> str:
        """Returns the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Waits until the condition is true; returns False after `timeout` seconds without that."""
    deadline = monotonic() + timeout
    while not condition():
        if monotonic() > deadline:
            return False
        sleep(0.05)
    return True
