"""`transaction()`: saves and emits inside it are one commit."""

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
from nitro.infrastructure.database.connections import engine, has_user_engine, is_same_database
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
    """What `transaction()` returns: enter it with `with` or `async with`, once."""

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
    - A block inside a block is a savepoint: if it fails and the outer code goes on, only what the inner one
      saved and emitted is gone. There is one commit, at the end of the outermost block.
    - With a session of the user's own, saves and emits join that one. If it was not in a transaction yet, the
      block begins one and commits it; otherwise the block is a savepoint, and the user's own commit decides.
    - A `scoped_session`, such as Flask-SQLAlchemy's `db.session`, stands for the session that it has here and now.
    - An `AsyncSession` is adopted with `async with`, with the same rules. A plain `with` can wait for nothing, so
      there the user's `await session.commit()` is what commits.
    - Works in `async def` too. Other threads take no part: one that sees the block in a copied context can read,
      on a connection of its own, and open a block of its own; a write there, or an emit that offloads, raises.
    - A block is left where it was entered, in thread and context, or it rolls back and raises.
    - Objects are readable after the block, and detached.

    Raises:
        TransactionError: inner blocks of concurrent tasks overlapped, or the block was left in another thread or
            context than it was entered; nothing was committed. Or this is no session.
    """
    return TransactionBlock(resolve_session(session))


@contextmanager
def write_session() -> Iterator[Session]:
    """The session to write with: of the open transaction, else of one that commits at the end of the block.

    Raises:
        OpenElsewhere: the open transaction belongs to another thread.
    """
    current = transaction_to_join()
    if current is None:
        with transaction() as session:
            yield session
    elif must_await(current.session):
        raise TransactionError("the transaction has an AsyncSession: call this within `await session.run_sync(...)`")
    else:
        yield current.session


@contextmanager
def read_session() -> Iterator[Session]:
    """The session to read with: of this thread's open transaction, else one that is closed at the end of the block."""
    current = current_transaction()
    if current is not None and not must_await(current.session):
        yield current.session
        return
    with OwnSession(engine(), expire_on_commit=False) as session:
        yield session


@contextmanager
def write_connection() -> Iterator[Connection]:
    """A connection to write with, in a transaction of its own that is committed at the end of the block."""
    with engine().connect() as connection, connection.execution_options(**{WRITES_OPTION: True}).begin():
        yield connection


@contextmanager
def autocommit_connection() -> Iterator[Connection]:
    """A connection whose every statement is a transaction of its own: on a server one round trip in place of three.

    Not on an engine of the user's own, where listeners may have begun a transaction, or set something for it.
    """
    if has_user_engine() or engine().dialect.driver != "psycopg":
        with write_connection() as connection:
            yield connection
        return
    with engine().connect() as connection:
        try:
            connection.execution_options(isolation_level="AUTOCOMMIT")
        except BaseException:  # such as a signal raises: whoever is next must not get it as it is
            connection.invalidate()
            raise
        yield connection


def write_in_transaction(commit: Transaction | Commits, work: Callable[[Connection], None]) -> None:
    """Run SQL in the transaction that a commit ends; of a session that must be awaited, as the last thing in it.

    Raises:
        TransactionError: it is the transaction of another database than this process's; names both.
    """
    session = commit.session
    session.info[NITRO_BIND_KEY] = _choose_bind(session)

    def write() -> None:
        ensure_tables(session)
        work(connection_of(session))
        mark_written(session)

    if must_await(session):
        if not session.in_transaction():
            session.begin()
        commits_of(session).before_commit(write)
    else:
        write()


def _choose_bind(session: Session) -> Bind:
    """The bind that its instances are written on, or rows of Nitro's would be: the first that leads to our database.

    A session that can say neither takes our own engine into its transaction.
    """
    own, foreign = engine(), list[Bind]()
    for bind in _candidate_binds(session):
        if is_same_database(bind.engine, own):
            return bind
        foreign.append(bind)
    if not foreign:
        return own
    theirs, ours = foreign[0].engine.url.render_as_string(), own.url.render_as_string()
    raise TransactionError(
        f"this emit joins a transaction of {theirs}, but its deliveries are tracked in {ours}: "
        f"give bind(app, engine) or NITRO_DB_URL the database of that session, or the handler delivery='broker'"
    )


def _candidate_binds(session: Session) -> Iterator[Bind]:
    """Those that this transaction may have Nitro's rows written on, likeliest first; each is asked for when wanted."""
    if NITRO_BIND_KEY in session.info:
        yield session.info[NITRO_BIND_KEY]
    for mapper in (*commits_of(session).emitted_mappers, None):
        if (bind := bind_of(session, mapper)) is not None:
            yield bind


def _open_block(session: Session | AsyncSession | None) -> AbstractContextManager[Session | AsyncSession]:
    current = current_transaction()
    if session is None:
        return _own_transaction() if current is None else _nested_block(current)
    if not isinstance(session, Session):
        return _user_commits_block(session)
    return _user_session_block(session)


@contextmanager
def _own_transaction() -> Iterator[Session]:
    session = OwnSession(engine(), expire_on_commit=False, execution_options={WRITES_OPTION: True})
    with active_transaction(session), closing(session), _commit_at_end(session):
        yield session


@contextmanager
def _nested_block(current: Transaction) -> Iterator[Session]:
    block = prevent_commit_on_failure if must_await(current.session) else savepoint_block
    with block(current.session):
        yield current.session


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
    """Commit at the end of the block, or roll back when an exception leaves it or the commit fails."""
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
        ending: AsyncSession | AsyncSessionTransaction = session  # whose end the user may bring about himself
        if session.in_transaction():
            await session.run_sync(ensure_begun)
            ending = await session.begin_nested()
        else:
            await session.begin()
        try:
            yield session
            await ending.commit()
        except BaseException:
            await ending.rollback()
            raise
