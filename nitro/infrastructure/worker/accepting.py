"""A check of `accept_content`: a worker that would refuse the messages of its handlers does not start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery import Celery, bootsteps

from nitro.errors import NotAccepted
from nitro.infrastructure.offload.conf import accepts_json
from nitro.infrastructure.offload.declarations import declarations_by_name

ROUTING_OPTIONS = ("queue", "exchange", "routing_key")
"""Options of a message that decide its queue."""


class AcceptContentCheck(bootsteps.Step):  # type: ignore[misc]  # celery has no types
    """A bootstep that stops a worker at its start when the app refuses JSON and the worker consumes handlers."""

    def __init__(self, worker: Any, **_options: Any) -> None:
        app = worker.app
        refused = [] if accepts_json(app) else sorted(_consumed_handlers(app))
        if refused:
            raise SystemExit(str(NotAccepted(app.main, app.conf.accept_content, refused)))
        super().__init__(worker)


def attach(app: Celery) -> None:
    """Adds the step to every worker of an app."""
    app.steps["worker"].add(AcceptContentCheck)


def _consumed_handlers(app: Celery) -> Iterator[str]:
    """Yields the handlers whose messages go to a queue that this worker consumes."""
    consumed = app.amqp.queues.consume_from
    for name, declaration in declarations_by_name.items():
        routing = {key: value for key, value in declaration.offload.message_options.items() if key in ROUTING_OPTIONS}
        queue = app.amqp.router.route(routing, name, (), {}).get("queue")
        if getattr(queue, "name", queue) in consumed:
            yield name
