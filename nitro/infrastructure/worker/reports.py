"""Reports: what a worker's main process has seen, for its caretaker to write down: its loop waits for no database."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Nudge = Callable[[float], None]

_reports: deque[Callable[[], object]] = deque()
_nudges: list[Nudge] = []


def heard_by(nudge: Nudge) -> None:
    """Say whom to nudge, in so many seconds at the latest."""
    _nudges[:] = [nudge]


def report(what: Callable[[], object]) -> None:
    """Have this done on the database soon."""
    _reports.append(what)
    nudge(0.0)


def nudge(after: float) -> None:
    """Have the relay look at the table in so many seconds at the latest."""
    for hear in _nudges:
        hear(after)


def act() -> None:
    """Do all that was reported; what fails is done again next time."""
    while _reports:
        _reports[0]()
        _reports.popleft()
