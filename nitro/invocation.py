"""Invocation: the reader's own `celery -A …`, for messages that name a command to run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

UNKNOWN_APP = "<your app>"
_APP_OPTIONS = ("-A", "--app")


def celery_command(command: str) -> str:
    """A command of Celery's with the app that this process was started with, as far as it says one."""
    return f"celery -A {_app_name(sys.argv)} {command}"


def _app_name(arguments: Sequence[str]) -> str:
    """The app that a `celery` command was given; no other program's `-A` is one."""
    if not arguments or not _is_celery(arguments[0]):
        return UNKNOWN_APP
    rest = list(arguments[1:])
    for at, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name == "--app" and equals:
            return value
        if argument in _APP_OPTIONS and at + 1 < len(rest):
            return rest[at + 1]
        if argument.startswith("-A") and argument != "-A":
            return argument[2:]
    return os.environ.get("APP") or UNKNOWN_APP


def _is_celery(name: str) -> bool:
    """Whether it is `celery`, or `python -m celery`."""
    from pathlib import Path  # which is slow to load, and every import of an error would load it

    program = Path(name)
    return program.stem == "celery" or (program.name == "__main__.py" and program.parent.name == "celery")
