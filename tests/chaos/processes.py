"""Processes that are started, frozen, thawed and killed, each in its own process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

T = TypeVar("T")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOOK_AGAIN = 0.02
"""Seconds between two checks of a fact."""


class NotInTime(AssertionError):
    """A fact did not become true in time."""


def until(fact: Callable[[], T], within: float, what: str) -> T:
    """Waits for a true value of `fact`, and returns it.

    Raises:
        NotInTime: there was none within so many seconds.
    """
    end = monotonic() + within
    while not (value := fact()):
        if monotonic() > end:
            raise NotInTime(f"{what}: not within {within:.0f} s; at the end it was {value!r}")
        sleep(LOOK_AGAIN)
    return value


@dataclass(slots=True)
class Process:
    """A started process with its log file."""

    name: str
    log: Path
    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id, which is the id of its group too."""
        return self.popen.pid

    @property
    def text(self) -> str:
        """The whole output of the process."""
        return self.log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self.popen.poll() is None

    def kill(self) -> None:
        """Kills the process without its group, and waits for its end."""
        _signal(os.kill, self.pid, signal.SIGKILL)
        self.popen.wait()

    def kill_all(self) -> None:
        """Kills the process with its group, and waits for its end."""
        _signal(os.killpg, self.pid, signal.SIGKILL)
        self.popen.wait()

    def freeze(self) -> None:
        """Stops the group with SIGSTOP, like a machine that gets no CPU time."""
        _signal(os.killpg, self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Continues the group with SIGCONT."""
        _signal(os.killpg, self.pid, signal.SIGCONT)

    def ended(self, within: float) -> int:
        """Waits for the end of the process, and returns its exit code.

        Raises:
            NotInTime: it has not ended within so many seconds.
        """
        try:
            return self.popen.wait(within)
        except subprocess.TimeoutExpired as error:
            raise NotInTime(f"{self.name} has not ended within {within:.0f} s:\n{tail(self.text)}") from error


def start(
    name: str,
    command: Sequence[object],
    environ: Mapping[str, str],
    logs: Path,
    *,
    user: str | None = None,
) -> Process:
    """Starts a program in its own session; its output is appended to `name`.log."""
    log = logs / f"{name}.log"
    with log.open("ab") as file:
        popen = subprocess.Popen(
            list(map(str, command)),
            cwd="/" if user else ROOT,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            user=user,
        )
    return Process(name, log, popen)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Returns this process's environment without Nitro's settings, and with the import paths of the project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NITRO_", "CHAOS_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), **more}


def python(*arguments: object) -> list[object]:
    """Returns the command that runs a module in this interpreter."""
    return [sys.executable, "-m", *arguments]


def descendants(pid: int) -> list[int]:
    """Returns the ids of all child processes and their children, as the kernel lists them now."""
    parents = dict(_parents())
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def is_stopped(pid: int) -> bool:
    """Whether a process is frozen."""
    stat = _stat(pid)
    return stat is not None and stat[0] == "T"


def signal_all(pids: Iterable[int], number: int) -> None:
    """Sends a signal to each process that still exists."""
    for pid in pids:
        _signal(os.kill, pid, number)


def tail(text: str, lines: int = 40) -> str:
    """Returns the end of a log."""
    return "\n".join(text.splitlines()[-lines:])


def _parents() -> Iterable[tuple[int, int]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := _stat(int(folder.name))) is not None:
            yield int(folder.name), int(stat[1])


def _stat(pid: int) -> list[str] | None:
    """Returns the fields of `/proc/PID/stat` from the state on; the name before it may contain blanks (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        send(pid, number)
    except ProcessLookupError:  # it has ended by itself
        return
