"""Inspecting: what a worker answers to the questions of `celery inspect`."""

from __future__ import annotations

import json
import threading
from time import monotonic
from typing import Any

from celery.worker.control import inspect_command

from nitro.infrastructure.events.events import connected_events
from nitro.infrastructure.offload.handler_list import describe_handlers
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox.health import Health, read_health
from nitro.infrastructure.worker import identity
from nitro.infrastructure.worker.knowledge import WorkerInfo, this_worker, why_stuck

ANSWER_TIMEOUT_SECONDS = 0.5
"""Seconds that the worker's main loop, which must not wait for a database, waits for an answer about the outbox."""

relay_enabled: list[bool] = []
"""Whether this worker moves what waits; its caretaker says so."""


def list_handlers() -> list[dict[str, Any]]:
    """The handlers that this worker knows, by event."""
    rows: list[dict[str, Any]] = json.loads(json.dumps(describe_handlers(connected_events()), default=str))
    return rows


def describe_outbox(consumer: Any) -> dict[str, Any]:
    """What waits, runs, is dead and is stuck in the outbox of this worker; and whether it reaches its broker."""
    relays = any(relay_enabled)
    told = {"boot": identity.worker_id(), "broker": "reached" if publisher.is_ready else "away", "relays": relays}
    return {**told, **_health_query.answer(ANSWER_TIMEOUT_SECONDS, this_worker(consumer, relays=relays))}


class HealthQuery:
    """A question to the database, put on a thread of its own, and never twice at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._found: Health | str | None = None
        self._found_at = 0.0

    def answer(self, patience: float, worker: WorkerInfo) -> dict[str, Any]:
        """What the database says within so many seconds; else the last that it said, with its age."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._ask, daemon=True)
                self._thread.start()
            asking = self._thread
        asking.join(patience)
        found = self._found
        if found is None:
            return {"error": f"the database has not answered within {patience:g} s; ask again for its answer"}
        late = {"seconds_ago": round(monotonic() - self._found_at, 1)} if asking.is_alive() else {}
        return {**(_health_facts(found, worker) if isinstance(found, Health) else {"error": found}), **late}

    def _ask(self) -> None:
        try:
            found: Health | str = read_health()
        except Exception as error:  # noqa: BLE001  # it is the answer
            found = f"{type(error).__name__}: {error}"
        self._found, self._found_at = found, monotonic()


_health_query = HealthQuery()


def _health_facts(found: Health, worker: WorkerInfo) -> dict[str, Any]:
    stuck = [
        {
            "handler": group.handler,
            "queue": group.queue,
            "state": group.state,
            "count": group.stuck,
            "oldest_seconds": group.age,
            "why": why_stuck(group, [worker], alone=True),
        }
        for group in found.stuck_groups
    ]
    return {"deliveries": found.deliveries, "oldest_waiting_seconds": found.oldest_waiting_age, "stuck": stuck}


def nitro_handlers(_state: Any, **_: Any) -> list[dict[str, Any]]:
    """The handlers that this worker knows, by event."""

    return list_handlers()


def nitro_outbox(state: Any, **_: Any) -> dict[str, Any]:
    """What waits, runs, is dead and is stuck in the outbox of this worker; and whether it reaches its broker."""

    return describe_outbox(state.consumer)


def register_commands() -> None:
    """Have every worker of this process answer, and `celery inspect` know what can be asked."""
    for answer in (nitro_handlers, nitro_outbox):
        inspect_command()(answer)
