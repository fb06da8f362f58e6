"""The counter file: each handler and each task writes a line with its time, so that the benchmark sees its progress."""

from __future__ import annotations

import os
import time

SLEEP_SECONDS = 0.05
"""Seconds that the sleeping handlers and tasks wait."""

_file = os.open(os.environ["BENCH_COUNTER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def count() -> None:
    """Appends the present time to the file, for one run that has begun."""
    os.write(_file, b"%020d\n" % time.monotonic_ns())
