"""Tracebacks of failed handlers, in text that the database of the result backend can store."""

from __future__ import annotations

from typing import Any

from nitro.infrastructure.outbox.texts import to_storable


class StorableTracebackBackend:
    """Wraps a result backend of Celery, and escapes tracebacks for the database of this process.

    A text that the backend cannot store would end the worker: Celery stores it in the loop that reads messages.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def mark_as_failure(self, task_id: str, exc: Any, traceback: str | None = None, *args: Any, **options: Any) -> Any:
        """Stores that a task has failed."""
        return self._backend.mark_as_failure(task_id, exc, _storable_text(traceback), *args, **options)

    def mark_as_retry(self, task_id: str, exc: Any, traceback: str | None = None, *args: Any, **options: Any) -> Any:
        """Stores that a task has failed and runs again."""
        return self._backend.mark_as_retry(task_id, exc, _storable_text(traceback), *args, **options)


def _storable_text(traceback: str | None) -> str | None:
    return to_storable(traceback) if isinstance(traceback, str) else traceback
