"""Stopping: how a command that stays is told to end."""

from __future__ import annotations

import signal
from queue import SimpleQueue

Signals = SimpleQueue[int]


def signals() -> Signals:
    """SIGINT and SIGTERM as they come, from now on."""
    told: Signals = SimpleQueue()  # unlike an Event's set(), its put() may interrupt the thread that waits
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: told.put(received))
    return told
