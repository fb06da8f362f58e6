"""An open transaction: the thread that may use it, its savepoints, and its callbacks."""

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
    "an inner transaction() block failed and its session cannot undo it alone, so nothing was committed; "
    "use `async with transaction(session)`"
)


class Transaction:
    """An open transaction, created by the outermost `transaction()` block on its session.

    Attributes:
        session: the session of all saves and emits inside the block.
    """

    __slots__ = ("_open", "_owner", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._owner = this_thread()
        self._open = True

    def after_commit(self, callback: Callable[[], None], *, abandoned: Callable[[], None] | None = None) -> None:
        """Calls `callback` once after the outermost commit, outside the transaction; never after a rollback.

        Args:
            callback: the function to call; an error is logged, and the next callback still runs.
            abandoned: called instead when the user's own session is closed with neither commit nor rollback.
        """
        commits_of(self.session).after_commit(callback, abandoned=abandoned)

    def savepoint(self) -> AbstractContextManager[None]:
        """A savepoint around the block: only the block's work is undone when it fails."""
        return commits_of(self.session).savepoint()

    def savepoint_async(self) -> AbstractAsyncContextManager[None]:
        """A savepoint around async code. Concurrent tasks run one at a time."""
        return commits_of(self.session).savepoint_async()

    def after_rollback(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once after a rollback of its savepoint or transaction, or a close without a commit."""
        commits_of(self.session).after_rollback(callback)

    @property
    def is_usable(self) -> bool:
        """Whether the transaction is open and belongs to the calling thread."""
        return self._open and self._owner == this_thread()

    @property
    def is_open_elsewhere(self) -> bool:
        """Whether the transaction is open and belongs to another thread."""
        return self._open and self._owner != this_thread()

    @contextmanager
    def owned_by_this_thread(self) -> Iterator[None]:
        """Transfers the transaction to the calling thread for the block, while its own thread waits."""
        former_owner, self._owner = self._owner, this_thread()
        try:
            yield
        finally:
            self._owner = former_owner

    def end(self) -> None:
        """Marks the transaction as ended, also for contexts that were copied from this one."""
        self._open = False


def current_transaction() -> Transaction | None:
    """Returns the open transaction of this thread and context, or None."""
    transaction = scope.current_transaction()
    return transaction if isinstance(transaction, Transaction) else None


def transaction_to_join() -> Transaction | None:
    """Returns the open transaction that a write or an emit here joins, or None.

    Raises:
        OpenElsewhere: the open transaction belongs to another thread.
    """
    transaction = scope.transaction_to_join()
    return transaction if isinstance(transaction, Transaction) else None


def is_block_session(session: Session) -> bool:
    """Whether a session is that of the `transaction()` open in this context, also of another thread's."""
    transaction = scope.transaction_variable.get()
    return (
        isinstance(transaction, Transaction)
        and transaction.session is session
        and (transaction.is_usable or transaction.is_open_elsewhere)
    )


@contextmanager
def active_transaction(session: Session) -> Iterator[None]:
    """Makes the transaction current inside the block, and runs the due callbacks after it."""
    outer = current_transaction()
    transaction = outer if outer is not None and outer.session is session else Transaction(session)
    commits = commits_of(session)
    commits.open_blocks += 1
    token = scope.transaction_variable.set(transaction)
    try:
        yield
    finally:
        if transaction is not outer:
            transaction.end()
        # reset() raises ValueError in another context, where a generator may be closed: nothing to restore there.
        with suppress(ValueError):
            scope.transaction_variable.reset(token)
        commits.open_blocks -= 1
        commits.run_due()


@contextmanager
def savepoint_block(session: Session) -> Iterator[None]:
    """A savepoint for an inner `transaction()` block.

    Raises:
        TransactionError: inner blocks overlapped.
    """
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
    """Forbids the commit of a session whose inner block fails, where a savepoint cannot be awaited."""
    try:
        yield
    except BaseException:
        commits_of(session).commit_error = NOT_UNDOABLE_MESSAGE
        raise
