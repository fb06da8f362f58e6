"""Binds: the connection of a session that Nitro writes its rows on, also in a session with several databases."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, insert
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Mapper, Session, scoped_session
from sqlalchemy.util.concurrency import in_greenlet

from nitro.errors import TransactionError

Bind = Engine | Connection

NITRO_BIND_KEY = "nitro_bind"
"""Key in the `info` of a session: the bind on which its open transaction writes Nitro's rows."""

_ROW_INSERT = insert(Table("nitro_emission", MetaData()))


def bind_of(session: Session, mapper: Mapper[Any] | None = None) -> Bind | None:
    """Returns the bind on which a flush would write instances of a mapper, or None.

    Without a mapper it is the bind for Nitro's own rows.
    """
    with _as_if_flushing(session):
        try:
            return session.get_bind(clause=_ROW_INSERT) if mapper is None else session.get_bind(mapper.base_mapper)
        except UnboundExecutionError:
            return None


def nitro_bind_of(session: Session) -> Bind | None:
    """Returns the bind for Nitro's rows in the open transaction of a session."""
    chosen_bind: Bind | None = session.info.get(NITRO_BIND_KEY)
    return chosen_bind if chosen_bind is not None else bind_of(session)


def connection_of(session: Session) -> Connection:
    """Returns the connection for Nitro's rows, in the session's transaction."""
    bind = nitro_bind_of(session)
    return session.connection(bind_arguments=None if bind is None else {"bind": bind})


def async_session_of(session: Session) -> Any:
    """Returns the `AsyncSession` around a `Session`, or None."""
    module = _asyncio_module()
    return None if module is None else module.async_session(session)


def resolve_session(argument: Any) -> Any:
    """Returns the argument of `transaction()` as a `Session`, an `AsyncSession` or None.

    A scoped session is called for the session that it has for the calling code.

    Raises:
        TransactionError: the argument is no session.
    """
    asyncio_module = _asyncio_module()
    session_types: tuple[Any, ...] = (Session,) if asyncio_module is None else (Session, asyncio_module.AsyncSession)
    scoped_types: tuple[Any, ...] = (
        (scoped_session,) if asyncio_module is None else (scoped_session, asyncio_module.async_scoped_session)
    )
    session = argument() if isinstance(argument, scoped_types) else argument
    if session is None or isinstance(session, session_types):
        return session
    raise TransactionError(
        f"transaction() takes nothing, a Session, an AsyncSession, or a scoped_session such as Flask-SQLAlchemy's "
        f"db.session, and this is {_describe(argument)}"
    )


def must_await(session: Session) -> bool:
    """Whether the session belongs to an `AsyncSession` and the calling code cannot await it.

    Such code can add instances to the session, but cannot execute statements. Code within
    `await session.run_sync(...)` can.
    """
    return async_session_of(session) is not None and not in_greenlet()


def is_flushing(session: Session) -> bool:
    """Whether the session is being flushed, so that the caller runs inside of that flush."""
    return session._flushing


def _asyncio_module() -> Any:
    """Returns `sqlalchemy.ext.asyncio` if it has been imported, else None: without it no async session exists."""
    return sys.modules.get("sqlalchemy.ext.asyncio")


def _describe(argument: object) -> str:
    description = (
        f"the class {argument.__qualname__}"
        if isinstance(argument, type)
        else f"an instance of {type(argument).__qualname__}"
    )
    return f"{description}: call it, and pass its result" if callable(argument) else description


@contextmanager
def _as_if_flushing(session: Session) -> Iterator[None]:
    """Sets `_flushing`, so that a session that routes its statements returns the bind for writes.

    SQLAlchemy's recipe of a routing session reads `_flushing`. It has no public equivalent.
    """
    before = session._flushing
    session._flushing = True
    try:
        yield
    finally:
        session._flushing = before
