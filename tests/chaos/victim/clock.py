"""A wrong clock: the file that CHAOS_CLOCK names contains the seconds that are added to the time.

Python's `time.time` is moved, and `julianday('now')`, which SQLite is asked for. PostgreSQL keeps the clock of its
machine.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from sqlalchemy import Engine, event

UNIX = 2440587.5
"""The Julian day of 1970 (SQLite documentation: Date And Time Functions)."""
DAY = 86400.0

_true = time.time


def move() -> None:
    """Makes this process and its forks read the moved clock."""
    file = os.environ.get("CHAOS_CLOCK")
    if not file:
        return

    def moved() -> float:
        return _true() + float(Path(file).read_text() or 0)

    def on_connect(driver: object, _record: object) -> None:
        if isinstance(driver, sqlite3.Connection):
            driver.create_function("julianday", 1, lambda _now: moved() / DAY + UNIX)

    time.time = moved
    event.listen(Engine, "connect", on_connect)
