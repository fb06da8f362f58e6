"""Savepoints around handlers whose errors are only logged: their failure leaves the outer transaction intact."""

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
"""Part of a key in the `info` of a session, beside an event loop: the lock for outermost savepoints of async code."""

HANDLER_SAVEPOINTS_KEY = "nitro_points"
"""Key in the `info` of a session: the open savepoints that Nitro began for handlers."""

_current_lock: ContextVar[tuple[Session, Lock] | None] = ContextVar("nitro_turn", default=None)


def ensure_begun(session: Session) -> None:
    """Sends the BEGIN that a savepoint needs.

    A session without a single bind begins on each of its connections at the first use.
    """
    if nitro_bind_of(session) is not None:
        send_begin(connection_of(session))


@contextmanager
def savepoint(session: Session) -> Iterator[None]:
    """A savepoint around the block: only the block's work is undone when it fails.

    In a transaction that has already failed the block runs without a savepoint. A savepoint that the block has ended
    itself, for example by a commit of the session, is left alone.
    """
    if not session.is_active:
        yield
        return
    ensure_begun(session)
    transaction = session.begin_nested()
    handler_savepoints: set[SessionTransaction] = session.info.setdefault(HANDLER_SAVEPOINTS_KEY, set())
    handler_savepoints.add(transaction)
    try:
        yield
        if transaction in _open_savepoints(session):
            transaction.commit()
    except BaseException:
        if transaction in _open_savepoints(session):
            transaction.rollback()
        raise
    finally:
        handler_savepoints.discard(transaction)


def has_user_savepoint(session: Session) -> bool:
    """Whether a savepoint is open that the user's code has begun."""
    handler_savepoints: set[SessionTransaction] = session.info.get(HANDLER_SAVEPOINTS_KEY, set())
    return any(
        transaction.nested and transaction not in handler_savepoints for transaction in _open_savepoints(session)
    )


def _open_savepoints(session: Session) -> Iterator[SessionTransaction]:
    """Yields the open savepoints of a session, innermost first, then the transaction around them."""
    transaction = session.get_nested_transaction()
    while transaction is not None:
        yield transaction
        transaction = transaction.parent


@asynccontextmanager
async def savepoint_async(session: Session, *, awaits: bool) -> AsyncIterator[None]:
    """A savepoint around async code. Concurrent tasks of one session run one at a time: savepoints must not overlap.

    Args:
        awaits: whether the session belongs to an `AsyncSession`.
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

    outer_session, lock = _current_lock.get() or (None, None)
    if outer_session is not session or lock is None:
        lock = session.info.setdefault((SAVEPOINT_LOCK_KEY, get_running_loop()), Lock())
    async with lock:
        token = _current_lock.set((session, Lock()))  # the lock for savepoints inside of this one
        try:
            yield
        finally:
            _current_lock.reset(token)


@asynccontextmanager
async def _savepoint_of_async_session(session: Session) -> AsyncIterator[None]:
    from sqlalchemy.ext.asyncio import async_session

    session_to_await = async_session(session)
    if session_to_await is None:
        yield
        return
    block = savepoint(session)
    await session_to_await.run_sync(lambda _: block.__enter__())
    try:
        yield
    except BaseException as error:
        failure = error
        await session_to_await.run_sync(lambda _: block.__exit__(type(failure), failure, failure.__traceback__))
        raise
    await session_to_await.run_sync(lambda _: block.__exit__(None, None, None))
