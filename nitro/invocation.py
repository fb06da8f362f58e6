"""The `celery -A …` command line of this process, for messages that name a command to run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

UNKNOWN_APP = "<your app>"
_APP_OPTIONS = ("-A", "--app")


def celery_command(command: str) -> str:
    """Returns a Celery command for the app that this process was started with, or for `UNKNOWN_APP`."""
    return f"celery -A {_app_name(sys.argv)} {command}"


def _app_name(arguments: Sequence[str]) -> str:
    """Returns the app that a `celery` command names; `-A` of another program is ignored."""
    if not arguments or not _is_celery(arguments[0]):
        return UNKNOWN_APP
    rest = list(arguments[1:])
    for index, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name == "--app" and equals:
            return value
        if argument in _APP_OPTIONS and index + 1 < len(rest):
            return rest[index + 1]
        if argument.startswith("-A") and argument != "-A":
            return argument[2:]
    return os.environ.get("APP") or UNKNOWN_APP


def _is_celery(name: str) -> bool:
    """Whether the program is `celery`, or `python -m celery`."""
    from pathlib import Path  # slow to load, and every import of an error would load it

    program = Path(name)
    return program.stem == "celery" or (program.name == "__main__.py" and program.parent.name == "celery")
