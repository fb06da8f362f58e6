"""Binds: the connection of a session that Nitro's rows are written on, also where a session has several databases."""

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
"""In the `info` of a session, the bind that its transaction has Nitro's rows written on."""

_ROW_INSERT = insert(Table("nitro_emission", MetaData()))


def bind_of(session: Session, mapper: Mapper[Any] | None = None) -> Bind | None:
    """The bind that a flush would write an instance on, without a mapper a row of Nitro's; None where there is none."""
    with _as_if_flushing(session):
        try:
            return session.get_bind(clause=_ROW_INSERT) if mapper is None else session.get_bind(mapper.base_mapper)
        except UnboundExecutionError:
            return None


def nitro_bind_of(session: Session) -> Bind | None:
    """The bind that Nitro's rows are written on in the open transaction of a session."""
    found: Bind | None = session.info.get(NITRO_BIND_KEY)
    return found if found is not None else bind_of(session)


def connection_of(session: Session) -> Connection:
    """The connection that Nitro's rows are written on, in the session's transaction."""
    home = nitro_bind_of(session)
    return session.connection(bind_arguments=None if home is None else {"bind": home})


def async_session_of(session: Session) -> Any:
    """The `AsyncSession` that this one works for, or None."""
    loaded = _asyncio_module()
    return None if loaded is None else loaded.async_session(session)


def resolve_session(given: Any) -> Any:
    """The `Session` or `AsyncSession` that this is, or that a scoped session has for the calling code; None stays.

    Raises:
        TransactionError: it is neither.
    """
    loaded = _asyncio_module()
    kinds: tuple[Any, ...] = (Session,) if loaded is None else (Session, loaded.AsyncSession)
    scoped: tuple[Any, ...] = (scoped_session,) if loaded is None else (scoped_session, loaded.async_scoped_session)
    session = given() if isinstance(given, scoped) else given
    if session is None or isinstance(session, kinds):
        return session
    raise TransactionError(
        f"transaction() takes nothing, a Session, an AsyncSession, or a scoped_session such as Flask-SQLAlchemy's "
        f"db.session, and this is {_describe(given)}"
    )


def must_await(session: Session) -> bool:
    """Whether it belongs to an `AsyncSession` that the calling code cannot wait for: it may add, but not ask.

    Code within `await session.run_sync(...)` can.
    """
    return async_session_of(session) is not None and not in_greenlet()


def is_flushing(session: Session) -> bool:
    """Whether the caller is code that a flush calls."""
    return session._flushing


def _asyncio_module() -> Any:
    """The module of async sessions, if anybody has loaded it: there are none before."""
    return sys.modules.get("sqlalchemy.ext.asyncio")


def _describe(given: object) -> str:
    kind = (
        f"the class {given.__qualname__}" if isinstance(given, type) else f"an instance of {type(given).__qualname__}"
    )
    return f"{kind}: call it, and give what it returns" if callable(given) else kind


@contextmanager
def _as_if_flushing(session: Session) -> Iterator[None]:
    """Have a session that routes its statements answer as it does for a write.

    SQLAlchemy's recipe of a routing session looks at `_flushing`, and there is no other word for it.
    """
    before = session._flushing
    session._flushing = True
    try:
        yield
    finally:
        session._flushing = before
