"""The Emission that an emit returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nitro.infrastructure import scope
from nitro.infrastructure.threads import ForkSafeLock

if TYPE_CHECKING:
    from nitro.infrastructure.events.plan import Plan

_id_lock = ForkSafeLock()

Timing = tuple[float, float | None]
"""Begin and end of a handler, in seconds of `perf_counter`; the end is None while it runs, and if it is not awaited."""


class Emission(list[Any]):
    """The results of the inline handlers that are not None, with the id and the outcome of the emission.

    Attributes:
        event: name of the event.
        parent: id of the emission whose handler emitted this emission, or None.
        root: id of the first emission in the chain of parents, or None.
        cancelled_by: name of the handler that returned False, or None.
        caused_in: name of the handler that emitted this emission, or None.
        plan: the handlers of the emission; None on the fast path of `emit`, as are the next three.
        started_at: begin of the first handler, in seconds of `perf_counter`.
        handler: name of the sync handler that runs now.
        waits_for_commit: whether its offloads wait for a commit.
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
        """Returns an emission of that event, whose parent is the emission whose handler runs here."""
        emission = cls()
        emission.event = event
        cause = scope.current_cause()
        if cause is not None:
            emission.parent, emission.root = cause.id, cause.root or cause.id
            emission.caused_in = cause.handler
        return emission

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """Returns the attributes for pickle and copy, without the plan, whose functions cannot be pickled."""
        state = {name: getattr(self, name) for name in Emission.__slots__ if name != "plan"} | {"_id": self.id}
        return None, {name: value for name, value in state.items() if value is not None}

    if not TYPE_CHECKING:  # a class with __getattr__ has every attribute for a type checker

        def __getattr__(self, name: str) -> None:
            """Returns None for a slot that was not set: setting all slots would make each emission slower."""
            if name not in Emission.__slots__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    @property
    def id(self) -> str:
        """UUIDv7 of the emission as text (RFC 9562), made at the first access."""
        if self._id is None:
            from uuid_utils import uuid7

            new_id = str(uuid7())
            with _id_lock:
                self._id = self._id or new_id
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
        """Inline handlers that have begun: name → begin and end; empty where `plan` is None."""
        if self._timings is None:
            self._timings = {}
        return self._timings

    @property
    def offloaded(self) -> dict[str, str]:
        """Handlers that were queued: name → Celery task id."""
        if self._offloaded is None:
            self._offloaded = {}
        return self._offloaded
