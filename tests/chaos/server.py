"""A server process of the harness, on a free port and in its own folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path

from tests.chaos.processes import Process, descendants, signal_all, until

WITHIN = 60.0
"""Seconds within which a server answers."""
PLAIN = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}


class MissingServer(Exception):
    """A program is not installed; the message names it."""


def needed(program: str) -> str:
    """Returns the path of an installed program.

    Raises:
        MissingServer: it is not installed.
    """
    found = shutil.which(program)
    if found is None:
        raise MissingServer(f"MISSING SERVER: {program} is not installed")
    return found


def free_port() -> int:
    """Returns a port without a listener."""
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
        """Starts the program."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server answers a request."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts the server, and waits until it answers."""
        self.process = self.launch()
        until(lambda: self._is_alive() and self.answers(), WITHIN, f"{self.name} answers")

    def kill(self) -> None:
        """Kills the server and its children, and waits until its port is free."""
        if self.process is not None:
            pids = self._pids()
            signal_all(pids, signal.SIGKILL)
            self.process.popen.wait()
            self.process = None
            until(lambda: not self._listens(), WITHIN, f"{self.name} is gone")

    def freeze(self) -> None:
        """Stops the server with SIGSTOP; its connections stay open without an answer."""
        signal_all(self._pids(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Continues the server with SIGCONT."""
        signal_all(self._pids(), signal.SIGCONT)

    def close(self) -> None:
        """Kills the server and its helper processes."""
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
