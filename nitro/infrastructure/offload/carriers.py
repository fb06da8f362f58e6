"""Carriers: what travels with an emission besides its payload, such as a trace or a request id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nitro.infrastructure.events import Emission
    from nitro.infrastructure.offload.delivery import Delivery
    from nitro.infrastructure.offload.parcel import Parcel

Headers = Mapping[str, Any]
"""Of a message; the values are JSON."""


class Carrier(Protocol):
    """One who sends something along, and takes it out where the handler runs."""

    def give(self, emission: Emission) -> Headers:
        """The headers for the messages of an emission, asked for once where it is made."""

    def take(self, headers: Headers, delivery: Delivery) -> AbstractContextManager[object]:
        """What surrounds a run of a handler; entered on its thread, with the headers of its message."""


carriers: list[Carrier] = []

publishing: list[Callable[[Sequence[Parcel]], AbstractContextManager[object]]] = []
"""What surrounds the publishing of what a relay has taken from the outbox."""


def given(emission: Emission) -> dict[str, Any]:
    """What all carriers send along."""
    headers: dict[str, Any] = {}
    for carrier in carriers:
        headers.update(carrier.give(emission))
    return headers


def taken(headers: Headers, delivery: Delivery) -> AbstractContextManager[object]:
    """What surrounds a run of a handler."""
    return within(carrier.take(headers, delivery) for carrier in carriers) if carriers else nullcontext()


@contextmanager
def within(surroundings: Iterable[AbstractContextManager[object]]) -> Iterator[None]:
    """Inside of all of these, the last one innermost."""
    with ExitStack() as stack:
        for surrounding in surroundings:
            stack.enter_context(surrounding)
        yield
