"""Parcel: one task message before it is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from celery import Celery

from nitro.infrastructure.offload.message import Message
from nitro.infrastructure.offload.options import DELIVERY_HEADER, Delivery, Entities

TRACKED = ("at-least-once", "exactly-once")
"""The promises that are kept by a row in the outbox."""

KEPT_IN_ROW = ("countdown", "expires")
"""Options that the row of a tracked delivery sees to, and no message."""


@dataclass(slots=True, kw_only=True, eq=False)
class Parcel:
    """One handler's message of an emission; not frozen, which would triple the cost of making one.

    Attributes:
        task_id: Celery task id, the same for all its messages.
        promise: `delivery=` of the handler.
        mode: `entity=` of the handler.
        options: of `Task.apply_async`.
        carried: headers of its message that its emission sends along.
        store: what cannot be sent waits in the outbox; else it is an error.
        story: what became of its emission before, as JSON text.
        tracked: whether a row decides on its fate, so that its message only says which.
        queue: the queue that its row names; empty without a row.
        strayed: whether its message went to that queue and the row still names another one.
    """

    handler: str
    task_id: str
    message: Message
    promise: Delivery
    mode: Entities = "snapshot"
    options: dict[str, Any] = field(default_factory=dict)
    carried: dict[str, Any] = field(default_factory=dict)
    store: bool = True
    story: str | None = None
    queue: str = ""
    strayed: bool = False
    tracked: bool = field(init=False)

    def __post_init__(self) -> None:
        """Tells what depends on the promise."""
        self.tracked = self.promise in TRACKED

    @property
    def given(self) -> dict[str, Any]:
        """The options of its message."""
        if not self.tracked:
            return self.options
        return {name: value for name, value in self.options.items() if name not in KEPT_IN_ROW}

    @property
    def kwargs(self) -> dict[str, Any]:
        """The kwargs of its message."""
        message = replace(self.message, payload=None) if self.tracked else self.message
        return message.kwargs(self.handler)

    def went_to(self, queues: Sequence[str]) -> None:
        """Notes the queues that its message went to; any of them is good for its row."""
        if self.queue and self.queue not in queues:
            self.queue, self.strayed = queues[0], True

    def publish(self, app: Celery, **how: Any) -> None:
        """Have Celery send it as a task of the app, which need not have a handler of that name."""
        given = self.given
        headers = {**given.get("headers", {}), **self.carried, DELIVERY_HEADER: self.promise}
        shown = {"argsrepr": "()", "kwargsrepr": str(self.message)}
        by_row = {"expires": None} if self.tracked else {}  # else the class of the task may have the message expire
        options = {**given, **by_row, **shown, **how, "headers": headers, "task_id": self.task_id}
        task = app.tasks.get(self.handler)
        if task is None:
            app.send_task(self.handler, (), self.kwargs, **options)
        else:
            task.apply_async((), self.kwargs, **options)
