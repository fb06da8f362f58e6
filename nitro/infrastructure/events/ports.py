"""The dispatcher port for offloaded handlers, and its slot, which is filled when the first one is declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nitro.errors import NoDispatcher
from nitro.infrastructure import scope
from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.handler import Function, Handler, OffloadLike
from nitro.infrastructure.hooks import Slot


@dataclass(slots=True, kw_only=True)
class Call:
    """The sender and the arguments of an emission.

    The class is not frozen: a frozen dataclass takes three times as long to make.
    """

    sender: object
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Dispatcher(Protocol):
    """The port that turns the offloaded handlers of an emission into messages and rows."""

    def declare(self, function: Function, name: str, offload: object) -> OffloadLike:
        """Registers an offloaded function, in place of its older definition, and returns its checked options."""

    def dispatch(
        self, emission: Emission, call: Call, handlers: Sequence[Handler], commit: scope.Commit | None
    ) -> Callable[[], None]:
        """Serialises the call, records the task ids in the emission, and returns the step that publishes.

        Args:
            commit: the commit after which the caller publishes, or None.
        """

    def find_commit(self, call: Call, *, flush: bool = False, reading: bool = False) -> scope.Commit | None:
        """Returns the commit that this emit waits for: of the open transaction, else of the session of its instances.

        Args:
            call: sender and arguments of the emit.
            flush: whether pending instances are flushed, because rows are written in the same transaction.
            reading: whether the commit of a session that has only read is returned too.
        """

    async def flush(self, call: Call) -> None:
        """Flushes the pending instances of the call and reads expired columns, in sessions that must be awaited."""

    def payload_sizes(self, call: Call, handlers: Sequence[Handler]) -> list[int]:
        """Returns the bytes of payload that `dispatch` would send to each handler."""


GROUP = "nitro.dispatchers"
"""Group of entry points in which a distribution names the function that fills the slot."""

dispatcher_slot: Slot[Dispatcher] = Slot()


def dispatcher() -> Dispatcher:
    """Returns the dispatcher; an empty slot is filled by the function that the entry point names.

    Raises:
        NoDispatcher: no installed distribution has such an entry point, or several have.
    """
    found = dispatcher_slot.value
    return _load() if found is None else found


def _load() -> Dispatcher:
    """Calls the one function that an installed distribution names in `GROUP`."""
    from importlib.metadata import entry_points  # slower to load than the whole package of events

    points = list(entry_points(group=GROUP))
    if len(points) != 1:
        raise NoDispatcher(GROUP, [f"{point.dist.name} ({point.value})" for point in points if point.dist])
    wire: Callable[[], None] = points[0].load()
    wire()
    assert dispatcher_slot.value is not None
    return dispatcher_slot.value
