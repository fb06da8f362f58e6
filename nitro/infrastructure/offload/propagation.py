"""Propagators: carry context, such as a trace or a request id, in message headers from the emit to the handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from nitro.infrastructure.hooks import Hooks

if TYPE_CHECKING:
    from nitro.infrastructure.events import Emission
    from nitro.infrastructure.offload.delivery import Delivery
    from nitro.infrastructure.offload.envelope import TaskMessage

Headers = Mapping[str, Any]
"""Headers of a message; the values are JSON."""


class Propagator(Protocol):
    """A propagator: writes context into message headers, and restores it around the handler."""

    def inject(self, emission: Emission) -> Headers:
        """Returns headers for the messages of an emission; called once, in the emitter."""

    def extract(self, headers: Headers, delivery: Delivery) -> AbstractContextManager[object]:
        """Returns a context manager around a run of a handler, which is entered on the handler's thread.

        Args:
            headers: the headers of the handler's message.
        """


propagators: Hooks[Propagator] = Hooks()
"""The propagators of this process."""

publish_contexts: Hooks[Callable[[Sequence[TaskMessage]], AbstractContextManager[object]]] = Hooks()
"""Functions that return a context manager in which a relay publishes messages from the outbox."""


def inject_headers(emission: Emission) -> dict[str, Any]:
    """Returns the headers of all propagators for an emission."""
    headers: dict[str, Any] = {}
    for propagator in propagators:
        headers.update(propagator.inject(emission))
    return headers


def extract_context(headers: Headers, delivery: Delivery) -> AbstractContextManager[object]:
    """Returns one context manager for all propagators around a run of a handler."""
    return (
        enter_all(propagator.extract(headers, delivery) for propagator in propagators) if propagators else nullcontext()
    )


@contextmanager
def enter_all(contexts: Iterable[AbstractContextManager[object]]) -> Iterator[None]:
    """Enters all context managers in order, and leaves them in reverse order."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
