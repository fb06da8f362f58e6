"""Savepoints of handlers whose failure is only logged, so that it does not reach the transaction around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session, SessionTransaction

from nitro.infrastructure.database.binds import connection_of, nitro_bind_of
from nitro.infrastructure.database.sqlite import send_begin

if TYPE_CHECKING:
    from asyncio import Lock

SAVEPOINT_LOCK_KEY = "nitro_turn"
"""In the `info` of a session, with an event loop: the lock of its outermost savepoints that code awaits in."""

HANDLER_SAVEPOINTS_KEY = "nitro_points"
"""In the `info` of a session: the savepoints that are open here for handlers, and that nobody began."""

_current_lock: ContextVar[tuple[Session, Lock] | None] = ContextVar("nitro_turn", default=None)


def ensure_begun(session: Session) -> None:
    """Send the BEGIN that a savepoint needs; a session without a bind of its own begins each at its first use."""
    if nitro_bind_of(session) is not None:
        send_begin(connection_of(session))


@contextmanager
def savepoint(session: Session) -> Iterator[None]:
    """A part of a session's transaction that is undone alone when the block fails.

    A transaction that is broken already has nothing to keep: the block runs in it as it is. What the block ends by
    itself, such as by a commit of the session, stays ended.
    """
    if not session.is_active:
        yield
        return
    ensure_begun(session)
    point = session.begin_nested()
    points: set[SessionTransaction] = session.info.setdefault(HANDLER_SAVEPOINTS_KEY, set())
    points.add(point)
    try:
        yield
        if point in _open_savepoints(session):
            point.commit()
    except BaseException:
        if point in _open_savepoints(session):
            point.rollback()
        raise
    finally:
        points.discard(point)


def has_user_savepoint(session: Session) -> bool:
    """Whether a savepoint is open that the user's code has begun."""
    ours: set[SessionTransaction] = session.info.get(HANDLER_SAVEPOINTS_KEY, set())
    return any(point.nested and point not in ours for point in _open_savepoints(session))


def _open_savepoints(session: Session) -> Iterator[SessionTransaction]:
    """The open savepoints of a session, innermost first, and the transaction that they are in."""
    found = session.get_nested_transaction()
    while found is not None:
        yield found
        found = found.parent


@asynccontextmanager
async def savepoint_async(session: Session, *, awaits: bool) -> AsyncIterator[None]:
    """The same around code that awaits; concurrent tasks of one session take turns, as savepoints must not overlap.

    Args:
        awaits: the session belongs to an `AsyncSession`.
    """
    async with _savepoint_lock(session):
        if not awaits:
            with savepoint(session):
                yield
            return
        async with _savepoint_of_async_session(session):
            yield


@asynccontextmanager
async def _savepoint_lock(session: Session) -> AsyncIterator[None]:
    from asyncio import Lock, get_running_loop

    around, lock = _current_lock.get() or (None, None)
    if around is not session or lock is None:
        lock = session.info.setdefault((SAVEPOINT_LOCK_KEY, get_running_loop()), Lock())
    async with lock:
        token = _current_lock.set((session, Lock()))  # of the savepoints that are opened inside this one
        try:
            yield
        finally:
            _current_lock.reset(token)


@asynccontextmanager
async def _savepoint_of_async_session(session: Session) -> AsyncIterator[None]:
    from sqlalchemy.ext.asyncio import async_session

    owner = async_session(session)
    if owner is None:
        yield
        return
    point = savepoint(session)
    await owner.run_sync(lambda _: point.__enter__())
    try:
        yield
    except BaseException as error:
        failure = error
        await owner.run_sync(lambda _: point.__exit__(type(failure), failure, failure.__traceback__))
        raise
    await owner.run_sync(lambda _: point.__exit__(None, None, None))
