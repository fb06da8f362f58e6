"""Ticks: what handlers and tasks write down, so that others see how many are done, and when."""

from __future__ import annotations

import os
import time

NAP = 0.05
"""Seconds that the handlers and tasks of the row about waiting wait."""

_ticks = os.open(os.environ["BENCH_TICKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def tick() -> None:
    """Say that one more is done, and when it began."""
    os.write(_ticks, b"%020d\n" % time.monotonic_ns())
