"""Failpoints: named places in the way of a delivery where a test can have a fault happen."""

from __future__ import annotations

from collections.abc import Callable

hooks: list[Callable[[str], None]] = []
"""Called with the name of each failpoint that is reached; empty but for tests of faults."""


def failpoint(name: str) -> None:
    """Say that this place is reached."""
    for hook in hooks:
        hook(name)
