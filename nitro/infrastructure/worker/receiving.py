"""Receiving: a worker on Redis notes and acknowledges each message with one kept client; kombu makes two a message."""

from __future__ import annotations

from typing import Any

from celery import Celery, bootsteps

from nitro.infrastructure.offload.channels import keep_client


class KeptClient(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """A consumer's step that is taken again with each connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Before the first message: its loop begins after all steps."""
        keep_client(consumer.task_consumer.channel)


def attach(app: Celery) -> None:
    """Have every worker of an app take this step."""
    app.steps["consumer"].add(KeptClient)
