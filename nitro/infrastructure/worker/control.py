"""The answers of a worker to `celery inspect nitro_handlers` and `celery inspect nitro_outbox`."""

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
"""Seconds that the worker's main loop waits for the database; a longer wait would delay its messages."""

relay_enabled: list[bool] = []
"""Whether this worker runs a relay; `Supervisor` sets it, as the only item."""


def list_handlers() -> list[dict[str, Any]]:
    """Returns the handlers that this worker knows, by event."""
    rows: list[dict[str, Any]] = json.loads(json.dumps(describe_handlers(connected_events()), default=str))
    return rows


def describe_outbox(consumer: Any) -> dict[str, Any]:
    """Returns the numbers of deliveries in this worker's outbox, the stuck ones, and whether its broker is reached."""
    relays = any(relay_enabled)
    facts = {"boot": identity.worker_id(), "broker": "reached" if publisher.is_ready else "away", "relays": relays}
    return {**facts, **_health_query.answer(ANSWER_TIMEOUT_SECONDS, this_worker(consumer, relays=relays))}


class HealthQuery:
    """The query of the health, which runs on a thread of its own, and never twice at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._result: Health | str | None = None
        self._result_at = 0.0

    def answer(self, timeout: float, worker: WorkerInfo) -> dict[str, Any]:
        """Returns the result of the query; if it takes longer than `timeout` seconds, the last result and its age."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            thread = self._thread
        thread.join(timeout)
        result = self._result
        if result is None:
            return {"error": f"the database has not answered within {timeout:g} s; ask again for its answer"}
        age = {"seconds_ago": round(monotonic() - self._result_at, 1)} if thread.is_alive() else {}
        return {**(_health_facts(result, worker) if isinstance(result, Health) else {"error": result}), **age}

    def _run(self) -> None:
        try:
            result: Health | str = read_health()
        except Exception as error:  # noqa: BLE001  # the error is the answer
            result = f"{type(error).__name__}: {error}"
        self._result, self._result_at = result, monotonic()


_health_query = HealthQuery()


def _health_facts(health: Health, worker: WorkerInfo) -> dict[str, Any]:
    stuck = [
        {
            "handler": group.handler,
            "queue": group.queue,
            "state": group.state,
            "count": group.stuck,
            "oldest_seconds": group.age,
            "why": why_stuck(group, [worker], alone=True),
        }
        for group in health.stuck_groups
    ]
    return {"deliveries": health.deliveries, "oldest_waiting_seconds": health.oldest_waiting_age, "stuck": stuck}


def nitro_handlers(_state: Any, **_: Any) -> list[dict[str, Any]]:
    """Returns the handlers that this worker knows, by event."""
    return list_handlers()


def nitro_outbox(state: Any, **_: Any) -> dict[str, Any]:
    """Returns the numbers of deliveries in this worker's outbox, the stuck ones, and whether its broker is reached."""
    return describe_outbox(state.consumer)


def register_commands() -> None:
    """Registers the commands for the workers of this process, and for `celery inspect`."""
    for command in (nitro_handlers, nitro_outbox):
        inspect_command()(command)
