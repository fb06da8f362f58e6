"""Checks of `nitro doctor` on those who run deliveries: who takes which handlers, and what is stuck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING

from nitro.cli import listing
from nitro.cli.findings import Finding, fine, warning, wrong
from nitro.cli.project import NO_HANDLER
from nitro.invocation import celery

if TYPE_CHECKING:
    from celery import Celery

    from nitro.infrastructure.outbox.health import Group, Health
    from nitro.infrastructure.worker.knowledge import Seen

ANSWER = 2.0
"""Seconds in which running workers answer."""
BEATEN = 5.0
"""Seconds in which each worker that lives beats."""


def silent(noted: Mapping[str, tuple[str, int]], seen: Sequence[Seen], began: float) -> list[str]:
    """Names of workers that have not answered and live all the same: they have beaten since.

    Args:
        noted: name and beat of each worker, by boot id, of before they were asked.
        began: the monotonic time of that.
    """
    from nitro.infrastructure.outbox.census import beats

    answering = {worker.name for worker in seen}
    quiet = {boot: each for boot, each in noted.items() if each[0] not in answering}
    if not quiet:
        return []
    sleep(max(0.0, BEATEN - (monotonic() - began)))
    later = beats()
    return sorted({each[0] for boot, each in quiet.items() if later.get(boot, each) != each})


def workers(app: Celery, seen: Sequence[Seen], quiet: Sequence[str]) -> Iterator[Finding]:
    """Whether some worker takes the messages of each handler that is declared here, and some worker relays.

    Args:
        quiet: those that live and do not answer.
    """
    from nitro.infrastructure.worker.knowledge import unheard

    if not seen:
        start = "" if quiet else f"; start one: {celery('worker')}"
        yield warning("workers", f"none answers{start}{unheard(quiet)}")
        return
    names = ", ".join(worker.name for worker in seen)
    yield warning("workers", f"{names}{unheard(quiet)} (busy under -P solo?)") if quiet else fine("workers", names)
    yield from _handlers(app, seen, quiet)
    if all(worker.relays is False for worker in seen):
        what = "no worker that answers relays (--without-relay, or for another outbox)"
        yield warning("relay", f"{what}: does `{celery('nitro relay')}` run?{unheard(quiet)}")


def _handlers(app: Celery, seen: Sequence[Seen], quiet: Sequence[str]) -> Iterator[Finding]:
    """One that no worker knows is wrong, once all have answered; that a queue waits for its workers may be meant."""
    from nitro.infrastructure.worker.knowledge import unheard, unknown, unserved

    queues = sorted(set(_queues(app)))
    names = sorted({handler for handler, _ in queues})
    strange = {handler: reason for handler in names if (reason := unknown(handler, seen)) is not None}
    for reason in strange.values():
        told = f"{reason}; is NITRO_HANDLERS the same there?{unheard(quiet)}"
        yield warning("handlers", told) if quiet else wrong("handlers", told)
    if not strange and names:
        yield fine("handlers", f"{len(names)} offloaded, all known to a worker")
    known = ((handler, queue) for handler, queue in queues if handler not in strange)
    reasons = {reason: handler for handler, queue in known if (reason := unserved(handler, queue, seen)) is not None}
    for reason, handler in reasons.items():
        yield warning("queues", f"{reason}; what is emitted for {handler} will wait{unheard(quiet)}")


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


def stuck(health: Health, seen: Sequence[Seen], quiet: Sequence[str], away: str | None) -> Iterator[Finding]:
    """A line for each handler, queue and state of which something is stuck, with the reason.

    Args:
        quiet: workers that live and do not answer.
        away: why the broker cannot be reached; None when it can.
    """
    from nitro.infrastructure.worker.knowledge import why

    for group in health.stuck:
        away_for = health.oldest or group.age or 0.0
        asked = away is None or group.state == "running"
        reason = why(group, seen, silent=quiet) if asked else _away(str(away), away_for)
        yield wrong("stuck", f"{_of(group)}: {reason}")
    if not health.stuck:
        yield fine("stuck", "nothing")


def _of(group: Group) -> str:
    which = f"{listing.deliveries(group.stuck)} to {group.handler} in queue {group.queue}"
    return f"{which} {group.state}, the oldest for {listing.span(timedelta(seconds=group.age or 0.0))}"


def _away(away: str, seconds: float) -> str:
    """That the broker is away, and since when at the earliest: then became due what has not left."""
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    return f"broker away since {since:%Y-%m-%d %H:%M} UTC or later ({away})"
