"""Questions that `celery inspect` can ask a worker. Every `celery` command line knows them, so they import late."""

from __future__ import annotations

from typing import Any

from celery.worker.control import inspect_command


def nitro_handlers(_state: Any, **_: Any) -> list[dict[str, Any]]:
    """The handlers that this worker knows, by event."""
    from nitro.infrastructure.worker.inspecting import handlers

    return handlers()


def nitro_outbox(state: Any, **_: Any) -> dict[str, Any]:
    """What waits, runs, is dead and is stuck in the outbox of this worker; and whether it reaches its broker."""
    from nitro.infrastructure.worker.inspecting import outbox

    return outbox(state.consumer)


def wire() -> None:
    """Have every worker of this process answer, and `celery inspect` know what can be asked."""
    for answer in (nitro_handlers, nitro_outbox):
        inspect_command()(answer)
