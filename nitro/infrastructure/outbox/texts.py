"""Texts that the database of this process can store, with escapes for other characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from sqlalchemy import Connection, func, select

from nitro.errors import DeclarationError
from nitro.infrastructure.database import text_encodings

MAX_ID_CHARACTERS = 36
"""Characters of the id of an emission; a message may name a longer text."""

UTF_8 = "utf-8"
_PYTHON_NAMES = {"UTF8": UTF_8, "KOI8R": "koi8_r", "KOI8U": "koi8_u", "EUC_CN": "gb2312", "SQL_ASCII": "ascii"}
"""Python's names for PostgreSQL's encodings, where they differ."""


def to_storable(text: str) -> str:
    """Returns the text with escapes for NUL, lone surrogates, and characters outside the database's encoding."""
    for encoding in text_encodings or (UTF_8,):
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text.replace("\0", "\\0")


def to_storable_ascii(text: str) -> str:
    """Returns the text in ASCII with escapes, which every database can store."""
    return text.encode("ascii", "backslashreplace").decode().replace("\0", "\\0")


def to_storable_id(text: str | None) -> str | None:
    """Returns an emission id from a message, escaped and cut to the length of its column."""
    return text and to_storable(text)[:MAX_ID_CHARACTERS]


def check_names(names: Iterable[str | None]) -> None:
    """Checks that the database can store these names.

    Raises:
        DeclarationError: it cannot store a name, which the message quotes.
    """
    if text_encodings <= {UTF_8}:
        return
    for name in names:
        if name is not None and to_storable(name) != name:
            encodings = ", ".join(sorted(text_encodings - {UTF_8}))
            raise DeclarationError(f"the database, in {encodings}, cannot store the name {name!r}; give another name")


def read_encodings(connection: Connection) -> None:
    """Reads the encodings of the database and of its connection; a text must exist in both."""
    if connection.dialect.name != "postgresql":
        return
    settings = [func.current_setting(f"{side}_encoding") for side in ("server", "client")]
    server, client = connection.execute(select(*settings)).one()
    text_encodings.update(
        {_python_encoding(client)} if server == "SQL_ASCII" else {_python_encoding(server), _python_encoding(client)}
    )


def _python_encoding(encoding: str) -> str:
    """Returns Python's name of an encoding of PostgreSQL; ASCII for an unknown encoding."""
    name = _PYTHON_NAMES.get(encoding, encoding.replace("WIN", "cp"))
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "ascii"
