"""Propagators and instrumentation of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nitro.infrastructure.offload.delivery import Delivery
from nitro.infrastructure.offload.propagation import Headers, Propagator, propagators, publish_contexts
from support.events import no_observers

__all__ = ["Delivery", "Headers", "Propagator"]


@contextmanager
def no_propagators() -> Iterator[None]:
    """Removes all propagators in the block, and afterwards those that the block has added."""
    with propagators.replaced(), publish_contexts.replaced():
        yield


@contextmanager
def no_instrumentation() -> Iterator[None]:
    """Removes all observers and propagators in the block, and afterwards those that the block has added."""
    with no_observers(), no_propagators():
        yield


def add_propagators(*added: Propagator) -> None:
    """Adds propagators, the outermost first."""
    propagators.extend(added)


def count_propagators() -> int:
    """Returns the number of propagators of this process."""
    return len(propagators)


def delivery_of(emission: str) -> Delivery:
    """Returns a delivery of an emission."""
    facts: dict[str, Any] = dict.fromkeys(("root", "parent", "event", "deadline"))
    return Delivery(emission=emission, handler="shop.handler", attempt=1, idempotency_key="k", **facts)
