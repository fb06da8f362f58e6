"""Progress and results of handlers, for the result backend and for Flower."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import AsyncGeneratorType
from typing import Any

from kombu.utils.json import dumps

from nitro.infrastructure.logs import get_logger

logger = get_logger("nitro.worker")

kombu_dumps: Callable[[Any], str] = dumps

KIND_BY_BRACKET = {"{": "a dict", "[": "a list", "(": "a tuple"}
QUOTES = ("'", '"')
MAX_SUMMARY_CHARACTERS = 80
"""Characters of the summary of a result."""

PROGRESS_STATE = "PROGRESS"
"""The state of a task while it yields. Its meta is `{"step": number, "value": yielded value}`."""


class Progress:
    """Reports the steps of one run of a task, from any thread."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self._request = task.request
        self._steps = 0

    def report(self, value: Any) -> Any:
        """Reports a yielded value as the next step, and returns it."""
        self._steps += 1
        request = self._request
        shown_value = value if is_json(value) else repr(value)
        try:
            if not (request.called_directly or request.is_eager):
                self._store_step({"step": self._steps, "value": shown_value})
        except Exception:
            logger.warning("step %d of task %s is not shown", self._steps, request.id, exc_info=True)
        return value

    def _store_step(self, meta: dict[str, Any]) -> None:
        request, task = self._request, self._task
        if not request.ignore_result:
            task.backend.store_result(request.id, meta, PROGRESS_STATE, request=request)
        if task.send_events:
            with task.app.events.default_dispatcher(hostname=request.hostname) as events:
                events.send(
                    "task-progress", uuid=request.id, result=f"step {meta['step']}: {_shorten(repr(meta['value']))}"
                )

    async def collect(self, generator: AsyncGeneratorType[Any, Any]) -> list[Any]:
        """Returns all values of an async generator; reports each of them on a thread, beside the event loop."""
        return [await asyncio.to_thread(self.report, value) async for value in generator]


def summary(result_repr: str) -> str:
    """Returns the line that monitoring shows for a result, from its `repr`."""
    return "done" if result_repr == "None" else f"done: {_shorten(result_repr)}"


def _shorten(result_repr: str) -> str:
    """Returns the first line of a text; for containers, which may hold fields of entities, only their kind."""
    opening = result_repr[:1]
    if opening in KIND_BY_BRACKET:
        return KIND_BY_BRACKET[opening]
    if opening in QUOTES:
        result_repr = result_repr.strip(opening).split("\\n")[0]
    if len(result_repr) <= MAX_SUMMARY_CHARACTERS:
        return result_repr
    return f"{result_repr[: MAX_SUMMARY_CHARACTERS - 1]}…"


def is_json(value: Any) -> bool:
    """Whether Celery can write a value as JSON."""
    if value is None or type(value) in (bool, float, str):
        return True
    try:
        kombu_dumps(value)
    except Exception:  # noqa: BLE001  # an object's own `__json__` or `__getattr__` may raise anything
        return False
    return True


def json_result(result: Any, handler: str) -> Any:
    """Returns the result if it can be written as JSON; else None, with a warning, because the handler has succeeded."""
    if is_json(result):
        return result
    logger.warning("the result of handler %s is dropped: JSON cannot carry a %s", handler, type(result).__name__)
    return None
