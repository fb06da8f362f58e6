"""HandlerRequest: how a worker's main process treats the message of a handler."""

from __future__ import annotations

from typing import Any, cast

from nitro.infrastructure.offload.options import DELIVERY_HEADER


class HandlerRequest:
    """What a handler's request adds to Celery's: at-most-once, and nothing of a payload in `inspect`."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The pool took it: the last moment to acknowledge what must not run twice."""
        request: Any = self
        if request.request_dict.get(DELIVERY_HEADER) == "at-most-once":
            request.acknowledge()
        cast(Any, super()).on_accepted(pid, time_accepted)

    def info(self, **_unsafe: object) -> dict[str, Any]:
        """What `inspect` answers: the readable forms of the arguments, never the payload."""
        shown: dict[str, Any] = cast(Any, super()).info(safe=True)
        return shown
