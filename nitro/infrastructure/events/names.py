"""Checks of names of events, handlers and queues: every database must be able to store them in a bounded column."""

from __future__ import annotations

import re
from reprlib import repr as shortened

from nitro.errors import DeclarationError

MAX_NAME_CHARACTERS = 512
"""Length limit of a name, and of an id."""

_UNSTORABLE_CHARACTERS = re.compile("[\0\ud800-\udfff]")


def rejection_reason(name: str) -> str | None:
    """Returns the reason why a text can be neither a name nor an id, or None if it can."""
    if len(name) > MAX_NAME_CHARACTERS:
        return f"it has {len(name)} characters, and {MAX_NAME_CHARACTERS} is the most"
    if not name.isprintable() and (match := _UNSTORABLE_CHARACTERS.search(name)):
        return f"no database can store its character {match.group()!r}"
    return None


def check_name(owner: str, name: str) -> None:
    """Raises for a name that cannot be stored.

    Args:
        owner: kind of the object with the name, such as `event`.

    Raises:
        DeclarationError: the name cannot be stored; the message says the reason.
    """
    reason = rejection_reason(name)
    if reason is not None:
        raise DeclarationError(f"{owner} {shortened(name)}: {reason}; give it another name")
