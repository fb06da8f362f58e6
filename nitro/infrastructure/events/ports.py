"""The port through which offloaded handlers leave, and the slot that is filled when the first one appears."""

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
    """What the handlers of one emission are called with; not frozen, which would triple the cost of making one."""

    sender: object
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Dispatcher(Protocol):
    """Takes offloaded handlers to where they run."""

    def declare(self, function: Function, name: str, offload: object) -> OffloadLike:
        """Keep an offloaded function, in place of an older definition of it, and return its checked options."""

    def dispatch(
        self, emission: Emission, call: Call, handlers: Sequence[Handler], commit: scope.Commit | None
    ) -> Callable[[], None]:
        """Serialise for these handlers, note their task ids in the emission, return the step that publishes.

        Args:
            commit: the one after which that step will be taken, if there is one.
        """

    def find_commit(self, call: Call, *, flush: bool = False, reading: bool = False) -> scope.Commit | None:
        """The commit that this emit waits for: of the open transaction, else of the session its instances are in.

        Args:
            call: what is emitted.
            flush: something is to be written in it; write the instances in it that wait to be.
            reading: if there is none, give that of a session which is open and has only read.
        """

    async def flush(self, call: Call) -> None:
        """Write the instances in it that wait to be, and read expired columns, of sessions that must be awaited."""

    def payload_sizes(self, call: Call, handlers: Sequence[Handler]) -> list[int]:
        """The bytes of payload that `dispatch` would send to each."""


GROUP = "nitro.dispatchers"
"""The group of entry points in which a distribution names the function that fills the slot."""

dispatcher_slot: Slot[Dispatcher] = Slot()


def dispatcher() -> Dispatcher:
    """The dispatcher; the composition root is loaded, through its entry point, when the slot is still empty.

    Raises:
        NoDispatcher: no installed distribution has such an entry point, or several have.
    """
    found = dispatcher_slot.value
    return _load() if found is None else found


def _load() -> Dispatcher:
    """Calls the one function that an installed distribution names in `GROUP`."""
    from importlib.metadata import entry_points  # which takes longer to load than all of the events

    found = list(entry_points(group=GROUP))
    if len(found) != 1:
        raise NoDispatcher(GROUP, [f"{point.dist.name} ({point.value})" for point in found if point.dist])
    wire: Callable[[], None] = found[0].load()
    wire()
    assert dispatcher_slot.value is not None
    return dispatcher_slot.value
