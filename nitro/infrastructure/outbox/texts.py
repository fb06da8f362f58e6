"""Texts: what the database of this process can store, and what is written in place of the rest."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from sqlalchemy import Connection, func, select

from nitro.errors import DeclarationError
from nitro.infrastructure.database import text_encodings

MAX_ID_CHARACTERS = 36
"""Characters of an id of an emission; those that a message names may be anything."""

UTF_8 = "utf-8"
_PYTHON_NAMES = {"UTF8": UTF_8, "KOI8R": "koi8_r", "KOI8U": "koi8_u", "EUC_CN": "gb2312", "SQL_ASCII": "ascii"}
"""Names of encodings, where Python's is not PostgreSQL's in other letters."""


def to_storable(text: str) -> str:
    """The text as the database can keep it: escaped where it is NUL, half a surrogate pair, or outside its encoding."""
    for encoding in text_encodings or (UTF_8,):
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text.replace("\0", "\\0")


def to_storable_ascii(text: str) -> str:
    """The text in ASCII, which every database can keep."""
    return text.encode("ascii", "backslashreplace").decode().replace("\0", "\\0")


def to_storable_id(text: str | None) -> str | None:
    """What a message names as the id of an emission, as a column of such ids can keep it."""
    return text and to_storable(text)[:MAX_ID_CHARACTERS]


def check_names(names: Iterable[str | None]) -> None:
    """See that the database has all characters of these names.

    Raises:
        DeclarationError: it has not; names the first one.
    """
    if text_encodings <= {UTF_8}:
        return
    for name in names:
        if name is not None and to_storable(name) != name:
            others = ", ".join(sorted(text_encodings - {UTF_8}))
            raise DeclarationError(f"the database, in {others}, cannot store the name {name!r}; give another name")


def read_encodings(connection: Connection) -> None:
    """Ask a database, and the connection to it, for their encodings; both have to know a text."""
    if connection.dialect.name != "postgresql":
        return
    settings = [func.current_setting(f"{side}_encoding") for side in ("server", "client")]
    server, client = connection.execute(select(*settings)).one()
    text_encodings.update(
        {_python_encoding(client)} if server == "SQL_ASCII" else {_python_encoding(server), _python_encoding(client)}
    )


def _python_encoding(encoding: str) -> str:
    """Python's name of an encoding of PostgreSQL; of one that it does not know, ASCII."""
    name = _PYTHON_NAMES.get(encoding, encoding.replace("WIN", "cp"))
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "ascii"
