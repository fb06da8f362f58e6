"""Database writes that a worker's main loop defers to the supervisor's thread, so that it waits for no database."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sqlalchemy.exc import InterfaceError, OperationalError

from nitro.infrastructure.logs import get_logger

logger = get_logger("nitro.worker")

WakeCallback = Callable[[float], None]

_deferred: deque[Callable[[], object]] = deque()
_wake_callbacks: list[WakeCallback] = []


def set_wake_callbacks(supervisor: WakeCallback, relay: WakeCallback) -> None:
    """Sets the functions that wake the supervisor's thread and the relay's, after so many seconds at the latest."""
    _wake_callbacks[:] = [supervisor, relay]


def defer(write: Callable[[], object]) -> None:
    """Appends a write, and wakes the supervisor's thread to execute it."""
    _deferred.append(write)
    for wake_supervisor in _wake_callbacks[:1]:
        wake_supervisor(0.0)


def wake_relay_in(seconds: float) -> None:
    """Wakes the relay after so many seconds, when a row is due."""
    for wake_relay in _wake_callbacks[1:]:
        wake_relay(seconds)


def run_deferred() -> bool:
    """Executes all deferred writes, and returns whether there were any.

    Raises:
        OperationalError: the database is down; the remaining writes are executed next time.
    """
    has_writes = bool(_deferred)
    while _deferred:
        try:
            _deferred[0]()
        except (OperationalError, InterfaceError):
            raise
        except Exception:
            logger.exception("the outcome of a run cannot be written to the database")
        _deferred.popleft()
    return has_writes
