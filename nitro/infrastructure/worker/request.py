"""HandlerRequest: how a worker's main process treats the message of a handler."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, cast

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.utils.time import get_exponential_backoff_interval
from celery.worker import state

from nitro.infrastructure import greenlets
from nitro.infrastructure.offload.envelope import ENVELOPE_KEY, TRACKED_DELIVERIES
from nitro.infrastructure.offload.options import DELIVERY_HEADER
from nitro.infrastructure.outbox import claims, operations
from nitro.infrastructure.worker import deferred_writes, identity
from nitro.infrastructure.worker.results import summary


class AcknowledgedTask:
    """A task as a request sees it that is acknowledged already, and cannot be put back."""

    acks_late = retry_on_worker_lost = False

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._task, attribute)


class RequeuedFromRow(AcknowledgedTask):
    """A task as a request sees it whose run has lost its process: Celery shows a retry, and its row is taken back."""

    acks_late = retry_on_worker_lost = True
    max_retries = None
    default_retry_delay = 0

    def __init__(self, task: Any, take_back: Any) -> None:
        super().__init__(task)
        self.apply_async = take_back

    def signature_from_request(self, *_: Any, **__: Any) -> RequeuedFromRow:
        """What Celery would publish; here nothing is, because the row decides."""
        return self


class HandlerRequest:
    """What a handler's request adds to Celery's: the promises, and nothing of a payload in `inspect`."""

    @property
    def tracked(self) -> str | None:
        """The emission whose tracked delivery it is, or None."""
        request = cast(Any, self)
        if request.request_dict.get(DELIVERY_HEADER) not in TRACKED_DELIVERIES:
            return None
        return emission_id_in(request.kwargs)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The pool took it: the last moment to acknowledge what must not run twice."""
        if self._is_at_most_once():
            cast(Any, self).acknowledge()
        cast(Any, super()).on_accepted(pid, time_accepted)

    def send_event(self, kind: str, **facts: Any) -> None:
        """Tell monitors; of a result a sentence."""
        if kind == "task-succeeded":
            facts["result"] = summary(str(facts["result"]))
        cast(Any, super()).send_event(kind, **facts)

    def on_retry(self, exc_info: Any) -> None:
        """It failed, and its row says when it runs again."""
        cast(Any, super()).on_retry(exc_info)
        when = getattr(_unwrapped_error(exc_info), "when", None)
        if self.tracked and isinstance(when, int | float):
            deferred_writes.wake_relay_in(when)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """It failed; where its process died with it, its promise says whether it runs again."""
        request: Any = self
        error = _unwrapped_error(exc_info)
        if isinstance(error, MemoryError):
            # Celery raises it in the worker's main process, which ends with it; it was the handler's.
            exc_info.exception = RuntimeError(f"MemoryError in the handler: {error}")
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt):
            if self._is_at_most_once():
                request._task = AcknowledgedTask(request.task)
            elif (emission := self.tracked) is not None and not _is_stopping():
                take_back = partial(self._defer_loss, emission, f"its process died: {error}")
                request._task = RequeuedFromRow(request.task, take_back)
        return cast(Any, super()).on_failure(exc_info, *args, **options)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """It took too long; a hard limit has ended its process."""
        emission = None if soft else self.tracked
        if emission is not None:
            error = f"hard time limit of {timeout:g} s exceeded"
            row = (emission, self._name, self._process())
            deferred_writes.defer(partial(claims.record_timeout, *row, self._retry_delay(), error))
        cast(Any, super()).on_timeout(soft, timeout)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """It was revoked, before it started or while it ran."""
        if self.tracked is not None:
            deferred_writes.defer(partial(operations.revoke, [cast(Any, self).id], running=terminated))
        cast(Any, super())._announce_revoked(reason, terminated, signum, expired)

    def _defer_loss(self, emission: str, error: str) -> None:
        row = claims.is_run_in(emission, self._name, self._process())
        deferred_writes.defer(partial(claims.record_losses, row, error))

    def _retry_delay(self) -> float | None:
        """Seconds until the next try after a hard time limit, by the task's own options; None when there is none."""
        task, retries = cast(Any, self).task, cast(Any, self).request_dict.get("retries") or 0
        wanted = issubclass(TimeLimitExceeded, task.autoretry_for)
        if not wanted or (task.max_retries is not None and retries >= task.max_retries):
            return None
        if not task.retry_backoff:
            return float(task.default_retry_delay)
        factor, longest = int(max(1.0, task.retry_backoff)), int(task.retry_backoff_max)
        return float(get_exponential_backoff_interval(factor, retries, longest, task.retry_jitter))

    def _process(self) -> str:
        pid = (
            os.getpid() if greenlets.is_threading_patched() else cast(Any, self).worker_pid
        )  # a greenlet's is its address
        return identity.runner_prefix(identity.worker_id(), pid)

    @property
    def _name(self) -> str:
        return str(cast(Any, self).task_name)

    def _is_at_most_once(self) -> bool:
        return bool(cast(Any, self).request_dict.get(DELIVERY_HEADER) == "at-most-once")

    def info(self, **_unsafe: object) -> dict[str, Any]:
        """What `inspect` answers: the readable forms of the arguments, never the payload."""
        shown: dict[str, Any] = cast(Any, super()).info(safe=True)
        return shown


def _is_stopping() -> bool:
    """Whether this worker was told to end, so that what it ends is given back and no loss."""
    return state.should_stop not in (None, False) or state.should_terminate not in (None, False)


def emission_id_in(kwargs: Any) -> str | None:
    """The emission that the kwargs of a message name; whatever a message may carry."""
    envelope = kwargs.get(ENVELOPE_KEY) if isinstance(kwargs, dict) else None
    emission = envelope.get("emission") if isinstance(envelope, dict) else None
    return emission if isinstance(emission, str) else None


def _unwrapped_error(exc_info: Any) -> BaseException:
    """The exception, without what billiard has wrapped it in."""
    error: Any = exc_info.exception
    bare: BaseException = error.exc if isinstance(error, ExceptionWithTraceback) else error
    return bare
