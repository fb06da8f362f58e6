"""Emission: what an emit returns."""

from __future__ import annotations

from typing import Any

from nitro.infrastructure import scope
from nitro.infrastructure.events.lock import Lock

_lock = Lock()  # of the making of ids


class Emission(list[Any]):
    """The results of the inline handlers that are not None, and what else became of the event.

    Attributes:
        event: name of the event.
        parent: id of the emission whose handler emitted this one, or None.
        root: id of the first emission in that chain, or None.
        cancelled_by: name of the handler that returned False, or None.
    """

    __slots__ = ("_failed", "_id", "_offloaded", "_skipped", "cancelled_by", "event", "parent", "root")

    event: str
    cancelled_by: str | None
    parent: str | None
    root: str | None
    _id: str | None
    _skipped: dict[str, str] | None
    _failed: dict[str, BaseException] | None
    _offloaded: dict[str, str] | None

    def __init__(self, event: str) -> None:
        self.event = event
        cause = scope.cause()
        if cause is not None:
            self.parent, self.root = cause.id, cause.root or cause.id

    def __getattr__(self, name: str) -> None:
        """None, for what was never set: most emissions set nothing, which so costs nothing."""
        if name not in Emission.__slots__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    @property
    def id(self) -> str:
        """UUIDv7 text (RFC 9562), made when first asked for."""
        if self._id is None:
            from uuid_utils import uuid7

            made = str(uuid7())
            with _lock:
                self._id = self._id or made
        return self._id

    @property
    def skipped(self) -> dict[str, str]:
        """Handlers whose condition did not hold: name → reason."""
        if self._skipped is None:
            self._skipped = {}
        return self._skipped

    @property
    def failed(self) -> dict[str, BaseException]:
        """Inline handlers that failed and did not stop the emission: name → exception."""
        if self._failed is None:
            self._failed = {}
        return self._failed

    @property
    def offloaded(self) -> dict[str, str]:
        """Handlers that were queued: name → Celery task id."""
        if self._offloaded is None:
            self._offloaded = {}
        return self._offloaded
