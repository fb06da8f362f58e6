"""HandlerRequest: how a worker's main process treats the message of a handler."""

from __future__ import annotations

from typing import Any, cast

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError

from nitro.infrastructure.offload.options import DELIVERY_HEADER


class Acknowledged:
    """A task as a request sees it that is acknowledged already, and cannot be put back."""

    acks_late = retry_on_worker_lost = False

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._task, attribute)


class HandlerRequest:
    """What a handler's request adds to Celery's: at-most-once, and nothing of a payload in `inspect`."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The pool took it: the last moment to acknowledge what must not run twice."""
        if self._at_most_once():
            cast(Any, self).acknowledge()
        cast(Any, super()).on_accepted(pid, time_accepted)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """It failed; what must not run twice has failed for good when its process died with it."""
        request: Any = self
        error = exc_info.exception
        lost = isinstance(error.exc if isinstance(error, ExceptionWithTraceback) else error, WorkerLostError)
        if lost and self._at_most_once():
            request._task = Acknowledged(request._task)
        return cast(Any, super()).on_failure(exc_info, *args, **options)

    def _at_most_once(self) -> bool:
        return bool(cast(Any, self).request_dict.get(DELIVERY_HEADER) == "at-most-once")

    def info(self, **_unsafe: object) -> dict[str, Any]:
        """What `inspect` answers: the readable forms of the arguments, never the payload."""
        shown: dict[str, Any] = cast(Any, super()).info(safe=True)
        return shown
