"""Faults that the environment asks for; armed when a process imports its handlers.

CHAOS_AT is `PLACE:N:DEED`: the N-th time that this process, or one forked from it, reaches the failpoint PLACE, it
does the DEED: `kill` itself, kill its `group`, or `freeze` its group. CHAOS_ONCE names a file: the deed is done by
whoever makes it first, and by nobody after that.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nitro.infrastructure import failpoints

GRACE = 1.0
"""Seconds that whoever freezes itself does nothing: a thread goes on until the kernel has stopped its process."""


def _freeze() -> None:
    os.killpg(os.getpgid(0), signal.SIGSTOP)
    time.sleep(GRACE)


DEEDS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "group": lambda: os.killpg(os.getpgid(0), signal.SIGKILL),
    "freeze": _freeze,
}


class Fault:
    """A deed at the n-th time that a place is reached."""

    def __init__(self, place: str, times: int, deed: Callable[[], None], once: Path | None) -> None:
        self._place, self._left, self._deed, self._once = place, times, deed, once

    def __call__(self, name: str) -> None:
        """A failpoint is reached."""
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
    """Have the fault happen that the environment names, and no other."""
    failpoints.hooks[:] = [hook for hook in failpoints.hooks if not isinstance(hook, Fault)]
    wanted = environ.get("CHAOS_AT")
    if wanted:
        place, times, deed = wanted.split(":")
        once = environ.get("CHAOS_ONCE")
        failpoints.hooks.append(Fault(place, int(times), DEEDS[deed], Path(once) if once else None))
