"""Carriers: what travels with an emission besides its payload, such as a trace or a request id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nitro.infrastructure.events import Emission
    from nitro.infrastructure.offload.delivery import Delivery
    from nitro.infrastructure.offload.envelope import TaskMessage

Headers = Mapping[str, Any]
"""Of a message; the values are JSON."""


class Propagator(Protocol):
    """One who sends something along, and takes it out where the handler runs."""

    def inject(self, emission: Emission) -> Headers:
        """The headers for the messages of an emission, asked for once where it is made."""

    def extract(self, headers: Headers, delivery: Delivery) -> AbstractContextManager[object]:
        """What surrounds a run of a handler; entered on its thread, with the headers of its message."""


propagators: list[Propagator] = []

publish_contexts: list[Callable[[Sequence[TaskMessage]], AbstractContextManager[object]]] = []
"""What surrounds the publishing of what a relay has taken from the outbox."""


def inject_headers(emission: Emission) -> dict[str, Any]:
    """What all carriers send along."""
    headers: dict[str, Any] = {}
    for propagator in propagators:
        headers.update(propagator.inject(emission))
    return headers


def extract_context(headers: Headers, delivery: Delivery) -> AbstractContextManager[object]:
    """What surrounds a run of a handler."""
    return (
        enter_all(propagator.extract(headers, delivery) for propagator in propagators) if propagators else nullcontext()
    )


@contextmanager
def enter_all(surroundings: Iterable[AbstractContextManager[object]]) -> Iterator[None]:
    """Inside of all of these, the last one innermost."""
    with ExitStack() as stack:
        for surrounding in surroundings:
            stack.enter_context(surrounding)
        yield
