"""Prints the events of one `kinds` emission as the broker carries them, one JSON line each."""

from __future__ import annotations

import json
import sys
from typing import Any

from celery.events.receiver import EventReceiver

from nitro import emit
from project import handlers  # noqa: F401 - declares them
from tasks import app


class Watcher(EventReceiver):  # type: ignore[misc]  # Celery is untyped
    """Emits when the first worker event arrives, and stops when the generator's task has succeeded."""

    task_id = ""

    def show(self, event: dict[str, Any]) -> None:
        if not self.task_id:
            self.task_id = emit("kinds", "ada", key=sys.argv[1]).offloaded["project.handlers.generator"]
        elif event.get("uuid") == self.task_id:
            print(json.dumps({name: event.get(name) for name in ("type", "name", "args", "kwargs", "result")}))
            self.should_stop = event["type"] == "task-succeeded"


with app.connection_for_read() as connection:
    watcher = Watcher(connection, handlers={}, app=app)
    watcher.handlers["*"] = watcher.show
    watcher.capture(limit=None, timeout=20, wakeup=True)
