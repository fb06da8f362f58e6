"""Progress: what a generator handler yields, shown in the result backend and in Flower."""

from __future__ import annotations

import asyncio
from types import AsyncGeneratorType
from typing import Any

from kombu.exceptions import EncodeError
from kombu.serialization import dumps

STATE = "PROGRESS"
"""The task's state while it yields; its meta is `{"step": count, "value": what was yielded}`."""


class Progress:
    """Reports the steps of one task run, from whichever thread it yields in."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self._request = task.request
        self._steps = 0

    def report(self, value: Any) -> Any:
        """Show one more value, and return it."""
        self._steps += 1
        request = self._request
        if request.called_directly:
            return value
        if not request.ignore_result:
            meta = {"step": self._steps, "value": _plain(value)}
            self._task.backend.store_result(request.id, meta, STATE, request=request)
        if self._task.send_events:
            with self._task.app.events.default_dispatcher(hostname=request.hostname) as events:
                events.send("task-progress", uuid=request.id, result=f"step {self._steps}: {_plain(value)!r}")
        return value

    async def drain(self, generator: AsyncGeneratorType[Any, Any]) -> list[Any]:
        """All that an async generator yields, each value reported beside the loop."""
        return [await asyncio.to_thread(self.report, value) async for value in generator]


def _plain(value: Any) -> Any:
    """The value, or its text where JSON cannot carry it."""
    try:
        dumps(value, serializer="json")
    except (EncodeError, TypeError, ValueError):
        return repr(value)
    return value
