"""The request class of handlers: treats their messages in a worker's main process."""

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
    """Wraps a task for a request: early acknowledged, so that Celery does not requeue its message."""

    acks_late = retry_on_worker_lost = False

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._task, attribute)


class RequeuedFromRow(AcknowledgedTask):
    """Wraps a task whose process died: Celery reports a retry, and the row is requeued instead of a message."""

    acks_late = retry_on_worker_lost = True
    max_retries = None
    default_retry_delay = 0

    def __init__(self, task: Any, requeue: Any) -> None:
        super().__init__(task)
        self.apply_async = requeue

    def signature_from_request(self, *_: Any, **__: Any) -> RequeuedFromRow:
        """Returns itself as the signature of the retry; its `apply_async` requeues the row and publishes nothing."""
        return self


class HandlerRequest:
    """Mixin of Celery's request for handlers: keeps the promise of `delivery=`, and hides payloads from `inspect`."""

    @property
    def tracked_emission(self) -> str | None:
        """The id of the emission of a tracked delivery; None for an untracked one."""
        request = cast(Any, self)
        if request.request_dict.get(DELIVERY_HEADER) not in TRACKED_DELIVERIES:
            return None
        return emission_id_in(request.kwargs)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Acknowledges an at-most-once delivery when the pool starts it, so that it cannot run twice."""
        if self._is_at_most_once():
            cast(Any, self).acknowledge()
        cast(Any, super()).on_accepted(pid, time_accepted)

    def send_event(self, kind: str, **facts: Any) -> None:
        """Sends an event to monitors, with a summary of the result."""
        if kind == "task-succeeded":
            facts["result"] = summary(str(facts["result"]))
        cast(Any, super()).send_event(kind, **facts)

    def on_retry(self, exc_info: Any) -> None:
        """Wakes the relay when the row of a failed run is due again."""
        cast(Any, super()).on_retry(exc_info)
        when = getattr(_unwrapped_error(exc_info), "when", None)
        if self.tracked_emission and isinstance(when, int | float):
            deferred_writes.wake_relay_in(when)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """Handles a failed run; `delivery=` decides whether it runs again after its process died."""
        request: Any = self
        error = _unwrapped_error(exc_info)
        if isinstance(error, MemoryError):
            # Celery raises a MemoryError again in the worker's main process, which it would end.
            exc_info.exception = RuntimeError(f"MemoryError in the handler: {error}")
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt):
            if self._is_at_most_once():
                request._task = AcknowledgedTask(request.task)
            elif (emission := self.tracked_emission) is not None and not _is_stopping():
                requeue = partial(self._defer_loss, emission, f"its process died: {error}")
                request._task = RequeuedFromRow(request.task, requeue)
        return cast(Any, super()).on_failure(exc_info, *args, **options)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handles a time limit; after a hard limit, which has killed the process, it closes the run."""
        emission = None if soft else self.tracked_emission
        if emission is not None:
            error = f"hard time limit of {timeout:g} s exceeded"
            row = (emission, self._name, self._runner_prefix())
            deferred_writes.defer(partial(claims.record_timeout, *row, self._retry_delay(), error))
        cast(Any, super()).on_timeout(soft, timeout)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Cancels the row of a revoked delivery, which has not started or was terminated."""
        if self.tracked_emission is not None:
            deferred_writes.defer(partial(operations.revoke, [cast(Any, self).id], running=terminated))
        cast(Any, super())._announce_revoked(reason, terminated, signum, expired)

    def _defer_loss(self, emission: str, error: str) -> None:
        is_run = claims.is_run_in(emission, self._name, self._runner_prefix())
        deferred_writes.defer(partial(claims.record_losses, is_run, error))

    def _retry_delay(self) -> float | None:
        """Returns the seconds until the retry after a hard time limit, by the task's options; None without a retry."""
        task, retries = cast(Any, self).task, cast(Any, self).request_dict.get("retries") or 0
        is_retried = issubclass(TimeLimitExceeded, task.autoretry_for)
        if not is_retried or (task.max_retries is not None and retries >= task.max_retries):
            return None
        if not task.retry_backoff:
            return float(task.default_retry_delay)
        factor, max_delay = int(max(1.0, task.retry_backoff)), int(task.retry_backoff_max)
        return float(get_exponential_backoff_interval(factor, retries, max_delay, task.retry_jitter))

    def _runner_prefix(self) -> str:
        # The `worker_pid` of a greenlet is its memory address.
        pid = os.getpid() if greenlets.is_threading_patched() else cast(Any, self).worker_pid
        return identity.runner_prefix(identity.worker_id(), pid)

    @property
    def _name(self) -> str:
        return str(cast(Any, self).task_name)

    def _is_at_most_once(self) -> bool:
        return bool(cast(Any, self).request_dict.get(DELIVERY_HEADER) == "at-most-once")

    def info(self, **_unsafe: object) -> dict[str, Any]:
        """Returns the facts for `inspect`, with the readable forms of the arguments and without the payload."""
        facts: dict[str, Any] = cast(Any, super()).info(safe=True)
        return facts


def _is_stopping() -> bool:
    """Whether this worker is stopping, so that the runs that it ends are requeued and do not count as losses."""
    return state.should_stop not in (None, False) or state.should_terminate not in (None, False)


def emission_id_in(kwargs: Any) -> str | None:
    """Returns the emission id in the kwargs of a message; None when the kwargs have no valid envelope."""
    envelope = kwargs.get(ENVELOPE_KEY) if isinstance(kwargs, dict) else None
    emission = envelope.get("emission") if isinstance(envelope, dict) else None
    return emission if isinstance(emission, str) else None


def _unwrapped_error(exc_info: Any) -> BaseException:
    """Returns the exception without billiard's `ExceptionWithTraceback` around it."""
    error: Any = exc_info.exception
    unwrapped: BaseException = error.exc if isinstance(error, ExceptionWithTraceback) else error
    return unwrapped
