"""Reports: what a worker's main process has seen, for its caretaker to write down: its loop waits for no database."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sqlalchemy.exc import InterfaceError, OperationalError

from nitro.infrastructure.logs import logger_named

logger = logger_named("nitro.worker")

Nudge = Callable[[float], None]

_reports: deque[Callable[[], object]] = deque()
_nudges: list[Nudge] = []


def heard_by(caretaker: Nudge, relay: Nudge) -> None:
    """Say whom to nudge, in so many seconds at the latest."""
    _nudges[:] = [caretaker, relay]


def report(what: Callable[[], object]) -> None:
    """Have this done on the database soon."""
    _reports.append(what)
    for caretaker in _nudges[:1]:
        caretaker(0.0)


def expect(after: float) -> None:
    """Say that a row is due in so many seconds."""
    for relay in _nudges[1:]:
        relay(after)


def act() -> bool:
    """Do all that was reported, and say whether there was anything.

    Raises:
        OperationalError: the database is away; what is left is done next time.
    """
    acted = bool(_reports)
    while _reports:
        try:
            _reports[0]()
        except (OperationalError, InterfaceError):
            raise
        except Exception:
            logger.exception("what was reported of a run cannot be written down")
        _reports.popleft()
    return acted
