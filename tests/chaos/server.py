"""A server process of the harness's own, on a free port and in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path

from tests.chaos.processes import Process, descendants, signal_all, until

WITHIN = 60.0
"""Seconds in which a server answers."""
PLAIN = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}


class MissingServer(Exception):
    """A program is not installed; says which."""


def needed(program: str) -> str:
    """The path of an installed program.

    Raises:
        MissingServer: there is none.
    """
    found = shutil.which(program)
    if found is None:
        raise MissingServer(f"MISSING SERVER: {program} is not installed")
    return found


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process with its children."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: Process | None = None

    def launch(self) -> Process:
        """Start the program."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it does what it is there for."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = self.launch()
        until(lambda: self._is_alive() and self.answers(), WITHIN, f"{self.name} answers")

    def kill(self) -> None:
        """Kill it and all of its children; it is seen dead."""
        if self.process is not None:
            pids = self._pids()
            signal_all(pids, signal.SIGKILL)
            self.process.popen.wait()
            self.process = None
            until(lambda: not self._listens(), WITHIN, f"{self.name} is gone")

    def freeze(self) -> None:
        """Stop it as it is; connections stand, and nothing answers."""
        signal_all(self._pids(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        signal_all(self._pids(), signal.SIGCONT)

    def close(self) -> None:
        """End it and all that belongs to it."""
        self.kill()

    def _pids(self) -> list[int]:
        assert self.process is not None
        return [self.process.pid, *descendants(self.process.pid)]

    def _is_alive(self) -> bool:
        assert self.process is not None
        assert self.process.alive, f"{self.name} ended:\n{self.process.text}"
        return True

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
