"""Polling for a condition."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

T = TypeVar("T")

WITHIN = 20.0
"""Seconds that `until` waits by default."""
LOOK_AGAIN = 0.02


def until(fact: Callable[[], T], within: float = WITHIN) -> T:
    """Calls `fact` until it returns a true value, and returns that; fails after `within` seconds."""
    end = monotonic() + within
    while not (value := fact()):
        assert monotonic() < end, f"not within {within:.0f} s; at the end it was {value!r}"
        sleep(LOOK_AGAIN)
    return value
