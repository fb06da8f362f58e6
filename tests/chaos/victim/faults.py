"""Faults that the environment defines; they are armed when a process imports its handlers.

CHAOS_AT is `PLACE:N:DEED`: the N-th time that this process, or a process forked from it, reaches the failpoint PLACE,
it runs the DEED: `kill` itself, kill its `group`, or `freeze` its group. CHAOS_ONCE names a file: the process that
creates it runs the deed, and no process does so afterwards.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nitro.infrastructure import failpoints

GRACE = 1.0
"""Seconds that a freezing process sleeps, because its threads go on until the kernel has stopped it."""


def _freeze() -> None:
    os.killpg(os.getpgid(0), signal.SIGSTOP)
    time.sleep(GRACE)


DEEDS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "group": lambda: os.killpg(os.getpgid(0), signal.SIGKILL),
    "freeze": _freeze,
}


class Fault:
    """A deed at the n-th time that a failpoint is reached."""

    def __init__(self, place: str, times: int, deed: Callable[[], None], once: Path | None) -> None:
        self._place, self._left, self._deed, self._once = place, times, deed, once

    def __call__(self, name: str) -> None:
        """Counts a reached failpoint, and runs the deed at the n-th."""
        if name != self._place:
            return
        self._left -= 1
        if self._left == 0 and self._is_first():
            self._deed()

    def _is_first(self) -> bool:
        if self._once is None:
            return True
        try:
            self._once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def arm(environ: Mapping[str, str] = os.environ) -> None:
    """Arms the fault of the environment, and disarms any other."""
    failpoints.hooks[:] = [hook for hook in failpoints.hooks if not isinstance(hook, Fault)]
    wanted = environ.get("CHAOS_AT")
    if wanted:
        place, times, deed = wanted.split(":")
        once = environ.get("CHAOS_ONCE")
        failpoints.hooks.append(Fault(place, int(times), DEEDS[deed], Path(once) if once else None))
