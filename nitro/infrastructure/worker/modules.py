"""Modules: those of `NITRO_HANDLERS` are imported where Celery imports those of its own `imports` and `include`."""

from __future__ import annotations

from traceback import extract_tb
from typing import Any

from celery import Celery

from nitro.errors import HandlersFailed
from nitro.infrastructure.logs import get_logger
from nitro.settings import Settings

logger = get_logger("nitro.worker")


def import_handlers(sender: Celery, **_signal: Any) -> None:
    """Import them by the app's loader, which finds what lies in the working directory.

    Raises:
        SystemExit: one of them cannot be imported; Celery would show any other error as its own.
    """
    for module in Settings.load().handlers:
        try:
            sender.loader.import_task_module(module)
        except Exception as error:
            logger.debug("the module %s cannot be imported", module, exc_info=True)
            raise SystemExit(str(HandlersFailed(module, error, _failing_line(error)))) from error


def _failing_line(error: Exception) -> str | None:
    """The line of the module that was being imported last; None where none of them has begun."""
    if isinstance(error, SyntaxError):
        return None  # its text says it
    modules = [frame for frame in extract_tb(error.__traceback__) if frame.name == "<module>"]
    return f"{modules[-1].filename}, line {modules[-1].lineno}" if modules else None
