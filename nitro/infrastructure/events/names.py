"""Names of events, handlers and queues: what every database can keep, as a key and as a column of bounded length."""

from __future__ import annotations

import re
from reprlib import repr as shortened

from nitro.errors import DeclarationError

MAX_NAME_CHARACTERS = 512
"""Characters of a name, and of an id."""

_UNSTORABLE_CHARACTERS = re.compile("[\0\ud800-\udfff]")


def rejection_reason(name: str) -> str | None:
    """Why a text is neither a name nor an id; None of one that can be either."""
    if len(name) > MAX_NAME_CHARACTERS:
        return f"it has {len(name)} characters, and {MAX_NAME_CHARACTERS} is the most"
    if not name.isprintable() and (found := _UNSTORABLE_CHARACTERS.search(name)):
        return f"no database can store its character {found.group()!r}"
    return None


def check_name(what: str, name: str) -> None:
    """Refuse a name that could not be stored.

    Args:
        what: has the name, such as `event`.

    Raises:
        DeclarationError: it could not; says why.
    """
    reason = rejection_reason(name)
    if reason is not None:
        raise DeclarationError(f"{what} {shortened(name)}: {reason}; give it another name")
