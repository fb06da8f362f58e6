"""Loggers of Nitro: no text of a user can forge one of their lines."""

from __future__ import annotations

import logging
from traceback import format_exception

FRAME_PREFIX, GROUP_PREFIX = '  File "', "  | "
"""Prefix of a frame line in a traceback, and prefix of every line of an ExceptionGroup's own traceback."""


def escape_text(text: str) -> str:
    """Returns the text with unprintable characters escaped, so that it cannot break a line or control a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


def describe_error(error: BaseException) -> str:
    """Returns the type and the message of an error, also when its `__str__` raises."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  # the traceback module prints the same
        message = "<exception str() failed>"
    return f"{type(error).__name__}: {message}"


def split_traceback(traceback: str) -> tuple[str, str]:
    """Splits the text of a traceback into its frames and the lines of the exception."""
    lines = traceback.strip("\n").splitlines(keepends=True) or [""]
    bare = [line.removeprefix(GROUP_PREFIX) for line in lines]
    last_frame = max((number for number, line in enumerate(bare) if line.startswith(FRAME_PREFIX)), default=0)
    exception = next((number for number in range(last_frame, len(bare)) if not bare[number].startswith(" ")), 0)
    return "".join(lines[:exception]), "".join(lines[exception:])


def exception_line(traceback: str) -> str:
    """Returns the first line of the exception at the end of a traceback's text."""
    lines = split_traceback(traceback)[1].splitlines() or [""]
    return lines[0].removeprefix(GROUP_PREFIX)


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of that name, with a filter that escapes unprintable text and indents tracebacks."""
    logger = logging.getLogger(name)
    if _escape_record not in logger.filters:
        logger.addFilter(_escape_record)
    return logger


def log_extra(**facts: object) -> dict[str, object]:
    """Returns the `extra=` of a log call: `nitro_event`, `nitro_handler` and so on, for formatters that write JSON."""
    return {f"nitro_{name}": value for name, value in facts.items()}


def _escape_record(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = escape_text(message), None
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and not record.exc_text:
        lines = "".join(format_exception(error)).splitlines()
        record.exc_text = "\n".join(f"  {escape_text(line)}" for line in lines)
    return True
