"""Imports the modules of `NITRO_HANDLERS`, when Celery imports the modules of `imports` and `include`."""

from __future__ import annotations

from traceback import extract_tb
from typing import Any

from celery import Celery

from nitro.errors import HandlersFailed
from nitro.infrastructure.logs import get_logger
from nitro.settings import Settings

logger = get_logger("nitro.worker")


def import_handlers(sender: Celery, **_signal: Any) -> None:
    """Imports the handlers' modules by the app's loader, which searches the working directory too.

    Raises:
        SystemExit: a module cannot be imported. Celery would report any other exception as an error of its own.
    """
    for module in Settings.load().handlers:
        try:
            sender.loader.import_task_module(module)
        except Exception as error:
            logger.debug("the module %s cannot be imported", module, exc_info=True)
            raise SystemExit(str(HandlersFailed(module, error, _failing_line(error)))) from error


def _failing_line(error: Exception) -> str | None:
    """Returns file and line of the innermost module whose import failed; None when no module had started."""
    if isinstance(error, SyntaxError):
        return None  # its message has the line
    modules = [frame for frame in extract_tb(error.__traceback__) if frame.name == "<module>"]
    return f"{modules[-1].filename}, line {modules[-1].lineno}" if modules else None
