"""Emission: what an emit returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nitro.infrastructure import scope
from nitro.infrastructure.threads import ForkSafeLock

if TYPE_CHECKING:
    from nitro.infrastructure.events.plan import Plan

_id_lock = ForkSafeLock()

Timing = tuple[float, float | None]
"""When a handler began and ended, in seconds of `perf_counter`; no end while it runs, or where nobody waits for it."""


class Emission(list[Any]):
    """The results of the inline handlers that are not None, and what else became of the event.

    Attributes:
        event: name of the event.
        parent: id of the emission whose handler emitted this one, or None.
        root: id of the first emission in that chain, or None.
        cancelled_by: name of the handler that returned False, or None.
        caused_in: name of the handler that emitted this one, or None.
        plan: the handlers that it meets; None where they are all plain, and nobody watches.
        started_at: when its handlers began, in seconds of `perf_counter`; None as above.
        handler: name of the sync handler that runs now; None as above.
        waits_for_commit: whether its offloads wait for a commit; None as above.
    """

    __slots__ = (
        "_failed",
        "_id",
        "_offloaded",
        "_skipped",
        "_timings",
        "cancelled_by",
        "caused_in",
        "event",
        "handler",
        "parent",
        "plan",
        "root",
        "started_at",
        "waits_for_commit",
    )

    event: str
    cancelled_by: str | None
    parent: str | None
    root: str | None
    caused_in: str | None
    plan: Plan | None
    started_at: float | None
    handler: str | None
    waits_for_commit: bool | None
    _timings: dict[str, Timing] | None
    _id: str | None
    _skipped: dict[str, str] | None
    _failed: dict[str, BaseException] | None
    _offloaded: dict[str, str] | None

    @classmethod
    def of(cls, event: str) -> Emission:
        """An emission of that event, caused by the one whose handler runs here; bare `Emission()` knows neither."""
        made = cls()
        made.event = event
        cause = scope.current_cause()
        if cause is not None:
            made.parent, made.root = cause.id, cause.root or cause.id
            made.caused_in = cause.handler
        return made

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """Returns what pickle and copy take along: all that was set, without the plan, whose functions stay here."""
        state = {name: getattr(self, name) for name in Emission.__slots__ if name != "plan"} | {"_id": self.id}
        return None, {name: value for name, value in state.items() if value is not None}

    if not TYPE_CHECKING:  # to a type checker a class with it has every attribute

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
            with _id_lock:
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
    def timings(self) -> dict[str, Timing]:
        """Inline handlers that have begun: name → when; empty where `plan` is None."""
        if self._timings is None:
            self._timings = {}
        return self._timings

    @property
    def offloaded(self) -> dict[str, str]:
        """Handlers that were queued: name → Celery task id."""
        if self._offloaded is None:
            self._offloaded = {}
        return self._offloaded
