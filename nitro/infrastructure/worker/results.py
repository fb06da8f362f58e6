"""Results: what the result backend and Flower see of a handler, while it runs and when it has ended."""

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
"""Characters."""

PROGRESS_STATE = "PROGRESS"
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
        shown = value if is_json(value) else repr(value)
        try:
            if not (request.called_directly or request.is_eager):
                self._store_step({"step": self._steps, "value": shown})
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

    async def drain(self, generator: AsyncGeneratorType[Any, Any]) -> list[Any]:
        """All that an async generator yields, each value reported beside the loop."""
        return [await asyncio.to_thread(self.report, value) async for value in generator]


def summary(shown: str) -> str:
    """What monitoring shows of a result, of whose `repr` this is: one short line."""
    return "done" if shown == "None" else f"done: {_shorten(shown)}"


def _shorten(shown: str) -> str:
    """A text as its handler says it; of other values, which may hold fields of entities, what they are."""
    opening = shown[:1]
    if opening in KIND_BY_BRACKET:
        return KIND_BY_BRACKET[opening]
    if opening in QUOTES:
        shown = shown.strip(opening).split("\\n")[0]
    return shown if len(shown) <= MAX_SUMMARY_CHARACTERS else f"{shown[: MAX_SUMMARY_CHARACTERS - 1]}…"


def is_json(value: Any) -> bool:
    """Whether JSON, as Celery writes it, can carry a value."""
    if value is None or type(value) in (bool, float, str):
        return True
    try:
        kombu_dumps(value)
    except Exception:  # noqa: BLE001  # an object's own `__json__` or `__getattr__` may raise anything
        return False
    return True


def json_result(result: Any, handler: str) -> Any:
    """The result if JSON can carry it, else None and a warning: an effect that is done is no failure."""
    if is_json(result):
        return result
    logger.warning("the result of handler %s is dropped: JSON cannot carry a %s", handler, type(result).__name__)
    return None
