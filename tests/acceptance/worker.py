"""The processes of a project: workers that stay until they are ended, and programs that run to their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
WITHIN = 20.0
STOPS_WITHIN = 10.0
"""Seconds."""


def until(fact: Callable[[], T], within: float = WITHIN) -> T:
    """The first true value of `fact`; fails when there was none within so many seconds."""
    end = monotonic() + within
    while not (value := fact()):
        assert monotonic() < end, f"not within {within:.0f} s; at the end it was {value!r}"
        sleep(0.05)
    return value


@dataclass(frozen=True, slots=True)
class Worker:
    """A running worker.

    Attributes:
        name: its node name.
        log: the file that it writes to.
    """

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Process id of its main process; prefork handlers run in children of it."""
        return self.process.pid

    @property
    def text(self) -> str:
        """All that it has logged."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 60) -> str:
        """The end of its log."""
        return "\n".join(self.text.splitlines()[-lines:])

    def consumes(self) -> bool:
        """Whether it has said that it takes messages."""
        assert self.process.poll() is None, f"worker {self.name} ended:\n{self.tail()}"
        return f"{self.name} ready." in self.text


def end(*processes: subprocess.Popen[bytes], within: float = STOPS_WITHIN) -> None:
    """Ask processes to end, all at once; kill what has not ended in time, with its children."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    last = monotonic() + within
    for process in processes:
        try:
            process.wait(max(0.0, last - monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder with a program in which processes run.

    Attributes:
        folder: their working directory.
        app: what `celery -A` is given.
        environ: added to this process's environment, whose own `NITRO_*` variables they do not see.
        logs: the folder of the workers' logs.
    """

    folder: Path
    app: str
    environ: Mapping[str, str]
    logs: Path

    def python(self, *arguments: object, **environ: str) -> str:
        """Returns the output of a fresh interpreter; fails when the program does."""
        command = [sys.executable, *map(str, arguments)]
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environ(environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, f"{command} failed:\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def celery(self, *arguments: object) -> str:
        """Returns the output of a `celery -A …` command."""
        return self.python("-m", "celery", "-A", self.app, *arguments)

    def start(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        """A `celery -A …` command that stays, in a process group of its own; its output goes to `name`.log."""
        command = [sys.executable, "-m", "celery", "-A", self.app, *map(str, arguments)]
        with self.log(name).open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self._environ({}), stdout=log, stderr=log, start_new_session=True
            )

    def worker(self, name: str, *arguments: object) -> Worker:
        """A worker that takes messages; whoever starts it ends it."""
        process = self.start(name, "worker", "-n", f"{name}@acceptance", "-l", "INFO", *arguments)
        worker = Worker(f"{name}@acceptance", self.log(name), process)
        try:
            until(worker.consumes)
        except BaseException:
            end(process)
            raise
        return worker

    def log(self, name: str) -> Path:
        """The file that a process of that name writes to."""
        return self.logs / f"{name}.log"

    def _environ(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
        return {**kept, "PYTHONUNBUFFERED": "1", **self.environ, **more}
