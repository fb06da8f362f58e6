"""Inspecting: what a worker answers to `celery inspect nitro_handlers` and `nitro_outbox`."""

from __future__ import annotations

import json
import threading
from typing import Any

from celery.worker.control import inspect_command

from nitro.infrastructure.events.events import heard_events
from nitro.infrastructure.offload.catalogue import catalogue
from nitro.infrastructure.offload.courier import courier
from nitro.infrastructure.outbox import registry
from nitro.infrastructure.worker import identity

PATIENCE = 0.5
"""Seconds that the worker's main loop, which must not wait for a database, waits for an answer about the outbox."""


def wire() -> None:
    """Have every worker of this process answer, and `celery inspect` know what can be asked."""
    for answer in (nitro_handlers, nitro_outbox):
        inspect_command()(answer)


def nitro_handlers(_state: Any, **_: Any) -> list[dict[str, Any]]:
    """The handlers that this worker knows, by event."""
    rows: list[dict[str, Any]] = json.loads(json.dumps(catalogue(heard_events()), default=str))
    return rows


def nitro_outbox(_state: Any, **_: Any) -> dict[str, Any]:
    """What waits, runs and is dead in the outbox of this worker; and whether it reaches its broker."""
    told: dict[str, Any] = {"boot": identity.boot(), "broker": "reached" if courier.ready else "away"}
    asking = threading.Thread(target=lambda: told.update(_asked()), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return {**told} if "deliveries" in told or "error" in told else {**told, "error": "the database does not answer"}


def _asked() -> dict[str, Any]:
    try:
        health = registry.health()
    except Exception as error:  # noqa: BLE001  # it is the answer
        return {"error": f"{type(error).__name__}: {error}"}
    return {"deliveries": health.deliveries, "oldest_waiting_seconds": health.oldest}
