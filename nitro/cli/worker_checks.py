"""Checks of `nitro doctor` on the workers: which handlers and queues they serve, and what is stuck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Literal

from nitro.cli import render
from nitro.cli.project import NO_HANDLER_MESSAGE
from nitro.invocation import celery_command

if TYPE_CHECKING:
    from celery import Celery

    from nitro.infrastructure.outbox.health import DeliveryGroup, Health
    from nitro.infrastructure.worker.knowledge import WorkerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of a check; `wrong` keeps deliveries from being made, a `warning` need not."""

    verdict: Literal["fine", "warning", "wrong"]
    check: str
    found: str


def fine(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(verdict="fine", check=check, found=found)


def warning(check: str, found: str) -> Finding:
    """Something that somebody may have meant."""
    return Finding(verdict="warning", check=check, found=found)


def wrong(check: str, found: str) -> Finding:
    """Something that keeps deliveries from being made."""
    return Finding(verdict="wrong", check=check, found=" ".join(found.split()))


ANSWER_SECONDS = 2.0
"""Seconds in which running workers answer."""
HEARTBEAT_WAIT_SECONDS = 5.0
"""Seconds in which each worker that lives beats."""


def silent_workers(noted: Mapping[str, tuple[str, int]], seen: Sequence[WorkerInfo], began: float) -> list[str]:
    """Names of workers that have not answered and live all the same: they have beaten since.

    Args:
        noted: name and beat of each worker, by boot id, of before they were asked.
        began: the monotonic time of that.
    """
    from nitro.infrastructure.outbox.heartbeat import read_heartbeats

    answering = {worker.name for worker in seen}
    quiet = {boot: each for boot, each in noted.items() if each[0] not in answering}
    if not quiet:
        return []
    sleep(max(0.0, HEARTBEAT_WAIT_SECONDS - (monotonic() - began)))
    later = read_heartbeats()
    return sorted({each[0] for boot, each in quiet.items() if later.get(boot, each) != each})


def check_workers(app: Celery, seen: Sequence[WorkerInfo], quiet: Sequence[str]) -> Iterator[Finding]:
    """Whether some worker takes the messages of each handler that is declared here, and some worker relays.

    Args:
        quiet: those that live and do not answer.
    """
    from nitro.infrastructure.worker.knowledge import silent_workers_note

    if not seen:
        start = "" if quiet else f"; start one: {celery_command('worker')}"
        yield warning("workers", f"none answers{start}{silent_workers_note(quiet)}")
        return
    names = ", ".join(worker.name for worker in seen)
    yield (
        warning("workers", f"{names}{silent_workers_note(quiet)} (busy under -P solo?)")
        if quiet
        else fine("workers", names)
    )
    yield from _check_known_handlers(app, seen, quiet)
    if all(worker.relays is False for worker in seen):
        what = "no worker that answers relays (--without-relay, or for another outbox)"
        yield warning("relay", f"{what}: does `{celery_command('nitro relay')}` run?{silent_workers_note(quiet)}")


def _check_known_handlers(app: Celery, seen: Sequence[WorkerInfo], quiet: Sequence[str]) -> Iterator[Finding]:
    """One that no worker knows is wrong, once all have answered; that a queue waits for its workers may be meant."""
    from nitro.infrastructure.worker.knowledge import silent_workers_note, why_unknown, why_unserved

    queues = sorted(set(_handler_queues(app)))
    names = sorted({handler for handler, _ in queues})
    strange = {handler: reason for handler in names if (reason := why_unknown(handler, seen)) is not None}
    for reason in strange.values():
        told = f"{reason}; is NITRO_HANDLERS the same there?{silent_workers_note(quiet)}"
        yield warning("handlers", told) if quiet else wrong("handlers", told)
    if not strange and names:
        yield fine("handlers", f"{len(names)} offloaded, all known to a worker")
    known = ((handler, queue) for handler, queue in queues if handler not in strange)
    reasons = {
        reason: handler for handler, queue in known if (reason := why_unserved(handler, queue, seen)) is not None
    }
    for reason, handler in reasons.items():
        yield warning("queues", f"{reason}; what is emitted for {handler} will wait{silent_workers_note(quiet)}")


def check_declared_handlers() -> Iterator[Finding]:
    """Whether there is any handler at all."""
    from nitro.infrastructure.events.events import connected_events

    if not connected_events():
        yield warning("handlers", NO_HANDLER_MESSAGE)


def _handler_queues(app: Celery) -> Iterator[tuple[str, str]]:
    """The name of each offloaded handler, and of a queue that its messages go to."""
    from nitro.infrastructure.events.events import connected_events
    from nitro.infrastructure.offload import declarations
    from nitro.infrastructure.offload.destinations import expected_queue_of_handler
    from nitro.infrastructure.offload.options import Offload

    for event in connected_events():
        for handler in event.handlers:
            if isinstance(handler.offload, Offload) and handler.name in declarations.declarations_by_name:
                yield handler.name, expected_queue_of_handler(app, handler.name, handler.offload.message_options)


def check_stuck(
    health: Health, seen: Sequence[WorkerInfo], quiet: Sequence[str], away: str | None
) -> Iterator[Finding]:
    """A line for each handler, queue and state of which something is stuck, with the reason.

    Args:
        quiet: workers that live and do not answer.
        away: why the broker cannot be reached; None when it can.
    """
    from nitro.infrastructure.worker.knowledge import why_stuck

    for group in health.stuck_groups:
        away_for = health.oldest_waiting_age or group.age or 0.0
        asked = away is None or group.state == "running"
        reason = why_stuck(group, seen, silent=quiet) if asked else _describe_outage(str(away), away_for)
        yield wrong("stuck", f"{_describe_group(group)}: {reason}")
    if not health.stuck_groups:
        yield fine("stuck", "nothing")


def _describe_group(group: DeliveryGroup) -> str:
    which = f"{render.delivery_count(group.stuck)} to {group.handler} in queue {group.queue}"
    return f"{which} {group.state}, the oldest for {render.format_duration(timedelta(seconds=group.age or 0.0))}"


def _describe_outage(away: str, seconds: float) -> str:
    """That the broker is away, and since when at the earliest: then became due what has not left."""
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    return f"broker away since {since:%Y-%m-%d %H:%M} UTC or later ({away})"
