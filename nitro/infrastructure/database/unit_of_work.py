"""An open transaction: who may use it, its savepoints, and what runs when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, suppress

from sqlalchemy.orm import Session, SessionTransaction

from nitro.errors import TransactionError
from nitro.infrastructure import scope
from nitro.infrastructure.database.execution_context import this_thread
from nitro.infrastructure.database.savepoints import ensure_begun
from nitro.infrastructure.database.sessions import commits_of

OVERLAP_MESSAGE = (
    "transaction() blocks of one transaction overlap: one ended while another, begun later inside it, was open. "
    "Concurrent tasks that share a transaction must not open inner ones across an await. Nothing was committed"
)
NOT_UNDOABLE_MESSAGE = (
    "an inner transaction() block failed and its session cannot take it back alone, so nothing was committed; "
    "use `async with transaction(session)`"
)


class Transaction:
    """An open transaction, as the outermost `transaction()` block on its session made it.

    Attributes:
        session: everything inside goes through it.
    """

    __slots__ = ("_open", "_owner", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._owner = this_thread()
        self._open = True

    def after_commit(self, callback: Callable[[], None], *, abandoned: Callable[[], None] | None = None) -> None:
        """Call `callback` once after the outermost commit, outside the transaction; never after a rollback.

        Args:
            callback: what to call; a failure is logged, and the next one still runs.
            abandoned: called instead when the user's own session is closed with neither commit nor rollback.
        """
        commits_of(self.session).after_commit(callback, abandoned=abandoned)

    def savepoint(self) -> AbstractContextManager[None]:
        """A part of it that is undone alone when the block fails."""
        return commits_of(self.session).savepoint()

    def savepoint_async(self) -> AbstractAsyncContextManager[None]:
        """The same around code that awaits; of concurrent tasks one after the other."""
        return commits_of(self.session).savepoint_async()

    def after_rollback(self, callback: Callable[[], None]) -> None:
        """Call `callback` once if this is rolled back, also with its savepoint alone, or closed without a commit."""
        commits_of(self.session).after_rollback(callback)

    @property
    def is_usable(self) -> bool:
        """Whether it is still open and the calling thread is its own."""
        return self._open and self._owner == this_thread()

    @property
    def is_open_elsewhere(self) -> bool:
        """Whether it is still open, and another thread is its own."""
        return self._open and self._owner != this_thread()

    @contextmanager
    def owned_by_this_thread(self) -> Iterator[None]:
        """Make the calling thread its own one, while the thread that it belongs to waits."""
        lender, self._owner = self._owner, this_thread()
        try:
            yield
        finally:
            self._owner = lender

    def end(self) -> None:
        """Make it unusable, also for contexts that were copied from this one."""
        self._open = False


def current_transaction() -> Transaction | None:
    """The open transaction of this thread and context, with its session."""
    found = scope.current_transaction()
    return found if isinstance(found, Transaction) else None


def transaction_to_join() -> Transaction | None:
    """The same, for what is to be committed with it.

    Raises:
        OpenElsewhere: one is open that belongs to another thread.
    """
    found = scope.transaction_to_join()
    return found if isinstance(found, Transaction) else None


def is_block_session(session: Session) -> bool:
    """Whether it is the session of the `transaction()` that is open here, be it another thread's."""
    found = scope.transaction_variable.get()
    return isinstance(found, Transaction) and found.session is session and (found.is_usable or found.is_open_elsewhere)


@contextmanager
def active_transaction(session: Session) -> Iterator[None]:
    """Let the code inside find the transaction; run what waits for the commit when it has left."""
    outer = current_transaction()
    here = outer if outer is not None and outer.session is session else Transaction(session)
    commits = commits_of(session)
    commits.open_blocks += 1
    token = scope.transaction_variable.set(here)
    try:
        yield
    finally:
        if here is not outer:
            here.end()
        # A generator that is closed from another context cannot restore that one, and need not.
        with suppress(ValueError):
            scope.transaction_variable.reset(token)
        commits.open_blocks -= 1
        commits.run_due()


@contextmanager
def savepoint_block(session: Session) -> Iterator[None]:
    ensure_begun(session)
    savepoint = session.begin_nested()
    try:
        yield
        if session.get_nested_transaction() is not savepoint:
            raise TransactionError(OVERLAP_MESSAGE)
        savepoint.commit()
    except BaseException:
        _roll_back_savepoint(session, savepoint)
        raise


def _roll_back_savepoint(session: Session, savepoint: SessionTransaction) -> None:
    if session.get_nested_transaction() is savepoint:
        savepoint.rollback()
    else:
        commits_of(session).commit_error = OVERLAP_MESSAGE


@contextmanager
def prevent_commit_on_failure(session: Session) -> Iterator[None]:
    try:
        yield
    except BaseException:
        commits_of(session).commit_error = NOT_UNDOABLE_MESSAGE
        raise
