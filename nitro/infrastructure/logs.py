"""Logs: the loggers of the library, whose lines no text of a user's can forge."""

from __future__ import annotations

import logging
from traceback import format_exception

FRAME_PREFIX, GROUP_PREFIX = '  File "', "  | "
"""How the lines of frames begin in a traceback, and before that all of an exception group but those of its members."""


def escape_text(text: str) -> str:
    """Text that cannot break a line or steer a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


def describe_error(error: BaseException) -> str:
    """The kind and the message of an error, also of one whose message cannot be told."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  # as in a traceback
        message = "<exception str() failed>"
    return f"{type(error).__name__}: {message}"


def split_traceback(traceback: str) -> tuple[str, str]:
    """The text of a traceback until where it says what was raised, and from there on."""
    lines = traceback.strip("\n").splitlines(keepends=True) or [""]
    bare = [line.removeprefix(GROUP_PREFIX) for line in lines]
    after_frames = max((number for number, line in enumerate(bare) if line.startswith(FRAME_PREFIX)), default=0)
    own = next((number for number in range(after_frames, len(bare)) if not bare[number].startswith(" ")), 0)
    return "".join(lines[:own]), "".join(lines[own:])


def exception_line(traceback: str) -> str:
    """What the text of a traceback says in the end: the first line of its exception, whose message may have many."""
    own = split_traceback(traceback)[1].splitlines() or [""]
    return own[0].removeprefix(GROUP_PREFIX)


def get_logger(name: str) -> logging.Logger:
    """The logger of that name; nothing that its lines say can break them, and tracebacks below them are indented."""
    logger = logging.getLogger(name)
    if _escape_record not in logger.filters:
        logger.addFilter(_escape_record)
    return logger


def log_extra(**known: object) -> dict[str, object]:
    """The `extra=` of a line: `nitro_event`, `nitro_handler` and so on, for formatters that write JSON."""
    return {f"nitro_{name}": value for name, value in known.items()}


def _escape_record(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = escape_text(message), None
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and not record.exc_text:
        lines = "".join(format_exception(error)).splitlines()
        record.exc_text = "\n".join(f"  {escape_text(line)}" for line in lines)
    return True
