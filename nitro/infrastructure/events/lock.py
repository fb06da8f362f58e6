"""Lock: one that a forked child finds open."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class Lock:
    """A re-entrant lock; at a fork a thread of the parent may hold it, which in the child would never release it."""

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def take(self) -> bool:
        """Take it if it is free; whether it was."""
        return self._lock.acquire(blocking=False)

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]  # as `threading.Condition` asks

    def leave(self) -> None:
        """Give back what `take` has taken."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
