"""Checks of `nitro doctor` on those who run deliveries: who takes which handlers, and what is stuck."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nitro.cli import listing
from nitro.cli.findings import Finding, fine, warning, wrong
from nitro.cli.project import NO_HANDLER

if TYPE_CHECKING:
    from celery import Celery

    from nitro.infrastructure.outbox.health import Group, Health
    from nitro.infrastructure.worker.knowledge import Seen

ANSWER = 2.0
"""Seconds in which running workers answer."""


def workers(app: Celery, seen: Sequence[Seen]) -> Iterator[Finding]:
    """Whether some worker takes the messages of each handler that is declared here, and some worker relays."""
    if not seen:
        yield warning("workers", "none answers; start one: celery -A … worker")
        return
    yield fine("workers", ", ".join(worker.name for worker in seen))
    yield from _handlers(app, seen)
    if all(worker.relays is False for worker in seen):
        yield warning("relay", "no worker that answers relays (--without-relay): does `nitro relay` run?")


def _handlers(app: Celery, seen: Sequence[Seen]) -> Iterator[Finding]:
    """One that no worker knows is wrong; that a queue waits for its workers may be meant."""
    from nitro.infrastructure.worker.knowledge import unknown, unserved

    queues = sorted(set(_queues(app)))
    names = sorted({handler for handler, _ in queues})
    strange = {handler: reason for handler in names if (reason := unknown(handler, seen)) is not None}
    for reason in strange.values():
        yield wrong("handlers", f"{reason}; is NITRO_HANDLERS the same there?")
    if not strange and names:
        yield fine("handlers", f"{len(names)} offloaded, all known to a worker")
    known = ((handler, queue) for handler, queue in queues if handler not in strange)
    reasons = {reason: handler for handler, queue in known if (reason := unserved(handler, queue, seen)) is not None}
    for reason, handler in reasons.items():
        yield warning("queues", f"{reason}; what is emitted for {handler} will wait")


def declared() -> Iterator[Finding]:
    """Whether there is any handler at all."""
    from nitro.infrastructure.events.events import heard_events

    if not heard_events():
        yield warning("handlers", NO_HANDLER)


def _queues(app: Celery) -> Iterator[tuple[str, str]]:
    """The name of each offloaded handler, and of a queue that its messages go to."""
    from nitro.infrastructure.events.events import heard_events
    from nitro.infrastructure.offload import declarations
    from nitro.infrastructure.offload.destinations import queue_of
    from nitro.infrastructure.offload.options import Offload

    for event in heard_events():
        for handler in event.handlers:
            if isinstance(handler.offload, Offload) and handler.name in declarations.declared:
                yield handler.name, queue_of(app, handler.name, handler.offload.message)


def stuck(health: Health, seen: Sequence[Seen], away: str | None) -> Iterator[Finding]:
    """A line for each handler, queue and state of which something is stuck, with the reason.

    Args:
        away: why the broker cannot be reached; None when it can.
    """
    from nitro.infrastructure.worker.knowledge import why

    for group in health.stuck:
        away_for = health.oldest or group.age or 0.0
        yield wrong("stuck", f"{_of(group)}: {why(group, seen) if away is None else _away(away, away_for)}")
    if not health.stuck:
        yield fine("stuck", "nothing")


def _of(group: Group) -> str:
    which = f"{listing.deliveries(group.stuck)} to {group.handler} in queue {group.queue}"
    return f"{which} {group.state}, the oldest for {listing.span(timedelta(seconds=group.age or 0.0))}"


def _away(away: str, seconds: float) -> str:
    """That the broker is away, and since when at the earliest: then became due what has not left."""
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    return f"broker away since {since:%Y-%m-%d %H:%M} UTC or later ({away})"
