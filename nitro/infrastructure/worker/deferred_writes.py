"""Reports: what a worker's main process has seen, for its caretaker to write down: its loop waits for no database."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sqlalchemy.exc import InterfaceError, OperationalError

from nitro.infrastructure.logs import get_logger

logger = get_logger("nitro.worker")

WakeCallback = Callable[[float], None]

_deferred: deque[Callable[[], object]] = deque()
_wake_callbacks: list[WakeCallback] = []


def set_wake_callbacks(caretaker: WakeCallback, relay: WakeCallback) -> None:
    """Say whom to nudge, in so many seconds at the latest."""
    _wake_callbacks[:] = [caretaker, relay]


def defer(what: Callable[[], object]) -> None:
    """Have this done on the database soon."""
    _deferred.append(what)
    for caretaker in _wake_callbacks[:1]:
        caretaker(0.0)


def wake_relay_in(after: float) -> None:
    """Say that a row is due in so many seconds."""
    for relay in _wake_callbacks[1:]:
        relay(after)


def run_deferred() -> bool:
    """Do all that was reported, and say whether there was anything.

    Raises:
        OperationalError: the database is away; what is left is done next time.
    """
    acted = bool(_deferred)
    while _deferred:
        try:
            _deferred[0]()
        except (OperationalError, InterfaceError):
            raise
        except Exception:
            logger.exception("what was reported of a run cannot be written down")
        _deferred.popleft()
    return acted
