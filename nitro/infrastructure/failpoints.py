"""Failpoints: named steps of a delivery at which a test can inject a fault."""

from __future__ import annotations

from collections.abc import Callable

hooks: list[Callable[[str], None]] = []
"""Functions that are called with the name of each failpoint; empty except in tests of faults."""


def failpoint(name: str) -> None:
    """Calls the hooks with the name of a failpoint that is reached."""
    for hook in hooks:
        hook(name)
