"""Checks of `nitro doctor` on the workers: the handlers and queues that they serve, and stuck deliveries."""

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
    """The result of a check. `wrong` prevents deliveries; a `warning` may be intended."""

    verdict: Literal["fine", "warning", "wrong"]
    check: str
    found: str


def fine(check: str, found: str) -> Finding:
    """Returns a finding that needs no action."""
    return Finding(verdict="fine", check=check, found=found)


def warning(check: str, found: str) -> Finding:
    """Returns a finding that may be intended."""
    return Finding(verdict="warning", check=check, found=found)


def wrong(check: str, found: str) -> Finding:
    """Returns a finding that prevents deliveries."""
    return Finding(verdict="wrong", check=check, found=" ".join(found.split()))


ANSWER_SECONDS = 2.0
"""Seconds that workers have to answer."""
HEARTBEAT_WAIT_SECONDS = 5.0
"""Seconds within which each running worker sends a heartbeat."""


def silent_workers(
    beats_before: Mapping[str, tuple[str, int]], answering: Sequence[WorkerInfo], asked_at: float
) -> list[str]:
    """Returns the names of workers that have not answered, but have sent a heartbeat since they were asked.

    Args:
        beats_before: name and heartbeat of each worker before they were asked, by boot id.
        answering: the workers that have answered.
        asked_at: the monotonic time at which they were asked.
    """
    from nitro.infrastructure.outbox.heartbeat import read_heartbeats

    answering_names = {worker.name for worker in answering}
    silent = {boot: beat for boot, beat in beats_before.items() if beat[0] not in answering_names}
    if not silent:
        return []
    sleep(max(0.0, HEARTBEAT_WAIT_SECONDS - (monotonic() - asked_at)))
    beats_after = read_heartbeats()
    return sorted({beat[0] for boot, beat in silent.items() if beats_after.get(boot, beat) != beat})


def check_workers(app: Celery, workers: Sequence[WorkerInfo], silent_names: Sequence[str]) -> Iterator[Finding]:
    """Checks that a worker serves each handler that is declared here, and that a worker relays.

    Args:
        silent_names: names of workers that send heartbeats and do not answer.
    """
    from nitro.infrastructure.worker.knowledge import silent_workers_note

    if not workers:
        start = "" if silent_names else f"; start one: {celery_command('worker')}"
        yield warning("workers", f"none answers{start}{silent_workers_note(silent_names)}")
        return
    names = ", ".join(worker.name for worker in workers)
    yield (
        warning("workers", f"{names}{silent_workers_note(silent_names)} (busy under -P solo?)")
        if silent_names
        else fine("workers", names)
    )
    yield from _check_known_handlers(app, workers, silent_names)
    if all(worker.relays is False for worker in workers):
        problem = "no worker that answers relays (--without-relay, or for another outbox)"
        yield warning(
            "relay", f"{problem}: does `{celery_command('nitro relay')}` run?{silent_workers_note(silent_names)}"
        )


def _check_known_handlers(app: Celery, workers: Sequence[WorkerInfo], silent_names: Sequence[str]) -> Iterator[Finding]:
    """Checks the declared handlers: `wrong` if no worker knows one and all have answered.

    A queue that no worker consumes is a warning, as its workers may be started later.
    """
    from nitro.infrastructure.worker.knowledge import silent_workers_note, why_unknown, why_unserved

    queues = sorted(set(_handler_queues(app)))
    handlers = sorted({handler for handler, _ in queues})
    unknown = {handler: reason for handler in handlers if (reason := why_unknown(handler, workers)) is not None}
    for reason in unknown.values():
        problem = f"{reason}; is NITRO_HANDLERS the same there?{silent_workers_note(silent_names)}"
        yield warning("handlers", problem) if silent_names else wrong("handlers", problem)
    if not unknown and handlers:
        yield fine("handlers", f"{len(handlers)} offloaded, all known to a worker")
    served = ((handler, queue) for handler, queue in queues if handler not in unknown)
    reasons = {
        reason: handler for handler, queue in served if (reason := why_unserved(handler, queue, workers)) is not None
    }
    for reason, handler in reasons.items():
        yield warning("queues", f"{reason}; what is emitted for {handler} will wait{silent_workers_note(silent_names)}")


def check_declared_handlers() -> Iterator[Finding]:
    """Yields a warning if no handler is declared."""
    from nitro.infrastructure.events.events import connected_events

    if not connected_events():
        yield warning("handlers", NO_HANDLER_MESSAGE)


def _handler_queues(app: Celery) -> Iterator[tuple[str, str]]:
    """Yields the name of each offloaded handler with the queue of its messages."""
    from nitro.infrastructure.events.events import connected_events
    from nitro.infrastructure.offload import declarations
    from nitro.infrastructure.offload.destinations import expected_queue_of_handler
    from nitro.infrastructure.offload.options import Offload

    for event in connected_events():
        for handler in event.handlers:
            if isinstance(handler.offload, Offload) and handler.name in declarations.declarations_by_name:
                yield handler.name, expected_queue_of_handler(app, handler.name, handler.offload.message_options)


def check_stuck(
    health: Health, workers: Sequence[WorkerInfo], silent_names: Sequence[str], broker_error: str | None
) -> Iterator[Finding]:
    """Yields a finding with the reason for each group of stuck deliveries: equal handler, queue and state.

    Args:
        silent_names: names of workers that send heartbeats and do not answer.
        broker_error: the reason for which the broker cannot be reached; None if it can.
    """
    from nitro.infrastructure.worker.knowledge import why_stuck

    for group in health.stuck_groups:
        outage_seconds = health.oldest_waiting_age or group.age or 0.0
        is_broker_fine = broker_error is None or group.state == "running"
        reason = (
            why_stuck(group, workers, silent=silent_names)
            if is_broker_fine
            else _describe_outage(str(broker_error), outage_seconds)
        )
        yield wrong("stuck", f"{_describe_group(group)}: {reason}")
    if not health.stuck_groups:
        yield fine("stuck", "nothing")


def _describe_group(group: DeliveryGroup) -> str:
    deliveries = f"{render.delivery_count(group.stuck)} to {group.handler} in queue {group.queue}"
    return f"{deliveries} {group.state}, the oldest for {render.format_duration(timedelta(seconds=group.age or 0.0))}"


def _describe_outage(broker_error: str, seconds: float) -> str:
    """Returns the text for an unreachable broker, with the time since which the oldest waiting delivery is due."""
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    return f"broker away since {since:%Y-%m-%d %H:%M} UTC or later ({broker_error})"
