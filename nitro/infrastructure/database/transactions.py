"""`transaction()`: all saves and emits inside the block are one commit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session
from sqlmodel import Session as OwnSession

from nitro.errors import TransactionError
from nitro.infrastructure.database.binds import (
    NITRO_BIND_KEY,
    Bind,
    bind_of,
    connection_of,
    must_await,
    resolve_session,
)
from nitro.infrastructure.database.connections import engine, has_user_engine, is_same_database, writing_engine
from nitro.infrastructure.database.execution_context import ExecutionContext
from nitro.infrastructure.database.savepoints import ensure_begun
from nitro.infrastructure.database.sessions import Commits, commits_of, mark_written
from nitro.infrastructure.database.sqlite import WRITES_OPTION
from nitro.infrastructure.database.tables import ensure_tables
from nitro.infrastructure.database.unit_of_work import (
    Transaction,
    active_transaction,
    current_transaction,
    prevent_commit_on_failure,
    savepoint_block,
    transaction_to_join,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction, async_scoped_session

SessionT = TypeVar("SessionT")


class TransactionBlock(Generic[SessionT], AbstractContextManager[SessionT], AbstractAsyncContextManager[SessionT]):
    """The block of a `transaction()`; it is entered once, with `with` or `async with`."""

    __slots__ = ("_async_block", "_context", "_session", "_sync_block")

    def __init__(self, session: Session | AsyncSession | None) -> None:
        self._session = session

    def __enter__(self) -> SessionT:
        self._context = ExecutionContext()
        self._sync_block = _open_block(self._session)
        return self._sync_block.__enter__()  # type: ignore[return-value]  # the overloads of transaction() say which

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._context.exit_arguments(error, self._sync_block) as arguments:
            if arguments is not None:
                self._sync_block.__exit__(*arguments)

    async def __aenter__(self) -> SessionT:
        self._context = ExecutionContext()
        self._async_block = _open_block_async(self._session)
        return await self._async_block.__aenter__()  # type: ignore[return-value]  # the overloads of transaction() say which

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._context.exit_arguments(error, self._async_block) as arguments:
            if arguments is not None:
                await self._async_block.__aexit__(*arguments)


@overload
def transaction(session: None = None) -> TransactionBlock[OwnSession]: ...
@overload
def transaction(session: Session | scoped_session[Any]) -> TransactionBlock[Session]: ...
@overload
def transaction(session: AsyncSession | async_scoped_session[Any]) -> TransactionBlock[AsyncSession]: ...
def transaction(
    session: Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any] | None = None,
) -> TransactionBlock[OwnSession] | TransactionBlock[Session] | TransactionBlock[AsyncSession]:
    """A block in which every `save()` and `emit()` joins one commit: `with transaction() as session:`.

    - An exception that leaves the block rolls all of it back; offloads leave only after the commit.
    - A block inside a block is a savepoint. If the inner block fails and the outer code goes on, only the saves and
      emits of the inner block are undone. There is one commit, at the end of the outermost block.
    - With a session of the user's own, saves and emits join that session. If it was not in a transaction yet, the
      block begins one and commits it; otherwise the block is a savepoint, and the user's own commit decides.
    - A `scoped_session`, such as Flask-SQLAlchemy's `db.session`, is called for the session of the calling code.
    - An `AsyncSession` takes `async with`, with the same rules. A plain `with` cannot await, so there the user's
      `await session.commit()` commits.
    - It works in `async def` too. Another thread that sees the block in a copied context can read, on a connection of
      its own, and open a block of its own; a write there, or an emit that offloads, raises.
    - A block must be left in the thread and context in which it was entered; otherwise it rolls back and raises.
    - Objects are readable after the block, and detached.

    Raises:
        TransactionError: inner blocks of concurrent tasks overlapped, or the block was left in another thread or
            context than it was entered; nothing was committed. Or the argument is no session.
    """
    return TransactionBlock(resolve_session(session))


@contextmanager
def write_session() -> Iterator[Session]:
    """The session to write with: of the open transaction, else of a transaction that the block commits.

    Raises:
        OpenElsewhere: the open transaction belongs to another thread.
    """
    outer = transaction_to_join()
    if outer is None:
        with transaction() as session:
            yield session
    elif must_await(outer.session):
        raise TransactionError("the transaction has an AsyncSession: call this within `await session.run_sync(...)`")
    else:
        yield outer.session


@contextmanager
def read_session() -> Iterator[Session]:
    """The session to read with: of this thread's open transaction, else a session that the block closes."""
    outer = current_transaction()
    if outer is not None and not must_await(outer.session):
        yield outer.session
        return
    with OwnSession(engine(), expire_on_commit=False) as session:
        yield session


@contextmanager
def write_connection() -> Iterator[Connection]:
    """A connection to write with, in a transaction of its own, which the block commits."""
    with engine().connect() as connection, connection.execution_options(**{WRITES_OPTION: True}).begin():
        yield connection


@contextmanager
def autocommit_connection() -> Iterator[Connection]:
    """A connection on which each statement is a transaction of its own: one round trip to PostgreSQL, not three.

    With a user's own engine it is a `write_connection`, because that engine's listeners may begin a transaction.
    """
    if has_user_engine() or engine().dialect.driver != "psycopg":
        with write_connection() as connection:
            yield connection
        return
    with engine().connect() as connection:
        try:
            connection.execution_options(isolation_level="AUTOCOMMIT")
        except BaseException:  # also KeyboardInterrupt: the pool must not hand out a half-set connection
            connection.invalidate()
            raise
        yield connection


def write_in_transaction(commit: Transaction | Commits, execute: Callable[[Connection], None]) -> None:
    """Runs SQL in the transaction of a commit: at once, or before the commit if the session must be awaited.

    Raises:
        TransactionError: the transaction is on another database than this process's; the message names both.
    """
    session = commit.session
    session.info[NITRO_BIND_KEY] = _choose_bind(session)

    def write() -> None:
        ensure_tables(session)
        execute(connection_of(session))
        mark_written(session)

    if must_await(session):
        if not session.in_transaction():
            session.begin()
        commits_of(session).before_commit(write)
    else:
        write()


def _choose_bind(session: Session) -> Bind:
    """Returns the first candidate bind of a session that is on the database of this process.

    A session without any candidate gets the engine of this process.

    Raises:
        TransactionError: all candidates are on other databases.
    """
    own_engine, foreign_binds = engine(), list[Bind]()
    for bind in _candidate_binds(session):
        if is_same_database(bind.engine, own_engine):
            return bind
        foreign_binds.append(bind)
    if not foreign_binds:
        return own_engine
    foreign_url, own_url = foreign_binds[0].engine.url.render_as_string(), own_engine.url.render_as_string()
    raise TransactionError(
        f"this emit joins a transaction of {foreign_url}, but its deliveries are tracked in {own_url}: "
        f"give bind(app, engine) or NITRO_DB_URL the database of that session, or the handler delivery='broker'"
    )


def _candidate_binds(session: Session) -> Iterator[Bind]:
    """Yields the binds on which a session may write Nitro's rows, likeliest first. Lazy, as each lookup has a cost."""
    if NITRO_BIND_KEY in session.info:
        yield session.info[NITRO_BIND_KEY]
    for mapper in (*commits_of(session).emitted_mappers, None):
        if (bind := bind_of(session, mapper)) is not None:
            yield bind


def _open_block(session: Session | AsyncSession | None) -> AbstractContextManager[Session | AsyncSession]:
    outer = current_transaction()
    if session is None:
        return _own_transaction() if outer is None else _nested_block(outer)
    if not isinstance(session, Session):
        return _user_commits_block(session)
    return _user_session_block(session)


@contextmanager
def _own_transaction() -> Iterator[Session]:
    session = OwnSession(writing_engine(), expire_on_commit=False)
    with active_transaction(session), closing(session), _commit_at_end(session):
        yield session


@contextmanager
def _nested_block(outer: Transaction) -> Iterator[Session]:
    block = prevent_commit_on_failure if must_await(outer.session) else savepoint_block
    with block(outer.session):
        yield outer.session


@contextmanager
def _user_session_block(session: Session) -> Iterator[Session]:
    if session.in_transaction():
        with active_transaction(session), savepoint_block(session):
            yield session
        return
    with active_transaction(session):
        session.begin()
        with _commit_at_end(session):
            yield session


@contextmanager
def _commit_at_end(session: Session) -> Iterator[None]:
    """Commits at the end of the block; rolls back if an exception leaves the block or the commit fails."""
    try:
        yield
        session.commit()
    except BaseException:
        session.rollback()
        raise


@contextmanager
def _user_commits_block(session: AsyncSession) -> Iterator[AsyncSession]:
    with active_transaction(session.sync_session), prevent_commit_on_failure(session.sync_session):
        yield session


@asynccontextmanager
async def _open_block_async(session: Session | AsyncSession | None) -> AsyncIterator[Session | AsyncSession]:
    if session is None or isinstance(session, Session):
        with _open_block(session) as opened:
            yield opened
        return
    with active_transaction(session.sync_session):
        # The session, not its transaction: session.commit() also works after a commit inside of the block.
        commit_target: AsyncSession | AsyncSessionTransaction = session
        if session.in_transaction():
            await session.run_sync(ensure_begun)
            commit_target = await session.begin_nested()
        else:
            await session.begin()
        try:
            yield session
            await commit_target.commit()
        except BaseException:
            await commit_target.rollback()
            raise
