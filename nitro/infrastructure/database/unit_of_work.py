"""An open transaction: who may use it, its savepoints, and what runs when it is over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.attributes import instance_state

from nitro.errors import TransactionError
from nitro.infrastructure import scope
from nitro.infrastructure.database.sessions import Commits, commits_of, in_own_transaction
from nitro.infrastructure.database.sqlite import begin_for_real

OVERLAP = (
    "transaction() blocks of one transaction overlap: one ended while another, begun later inside it, was open. "
    "Concurrent tasks that share a transaction must not open inner ones across an await. Nothing was committed"
)
UNDONE = (
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
        self._owner = (os.getpid(), threading.get_ident())
        self._open = True

    def after_commit(self, callback: Callable[[], None], *, abandoned: Callable[[], None] | None = None) -> None:
        """Call `callback` once after the outermost commit, outside the transaction; never after a rollback.

        Args:
            callback: what to call; a failure is logged, and the next one still runs.
            abandoned: called instead when the user's own session is closed with neither commit nor rollback.
        """
        commits_of(self.session).after_commit(callback, abandoned=abandoned)

    def after_rollback(self, callback: Callable[[], None]) -> None:
        """Call `callback` once if this is rolled back, also with its savepoint alone, or closed without a commit."""
        commits_of(self.session).after_rollback(callback)

    @property
    def usable(self) -> bool:
        """Whether it is still open and the calling thread is its own."""
        return self._open and self._owner == (os.getpid(), threading.get_ident())

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Make the calling thread its own one, while the thread that it belongs to waits."""
        lender, self._owner = self._owner, (os.getpid(), threading.get_ident())
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


def commit_for(values: Iterable[object]) -> Transaction | Commits | None:
    """The commit that belongs to these values: of the open `transaction()`, else of a user's session they are in.

    A session counts when somebody will want to commit it (`in_own_transaction`).

    Raises:
        TransactionError: they are in sessions of two databases; names both.
    """
    current = current_transaction()
    states = [instance_state(value) for value in values if hasattr(type(value), "__mapper__")]
    own = [state.session for state in states if state.session is not None and in_own_transaction(state.session)]
    _check_one_database([*own, *([current.session] if current is not None else [])])
    return current if current is not None or not own else commits_of(own[0])


def _check_one_database(sessions: Sequence[Session]) -> None:
    if all(session is sessions[0] for session in sessions):
        return
    databases = {session.get_bind().engine.url.render_as_string() for session in sessions}
    if len(databases) > 1:
        raise TransactionError(f"one emit cannot wait for the commits of two databases: {', '.join(sorted(databases))}")


@contextmanager
def entered(session: Session) -> Iterator[None]:
    """Let the code inside find the transaction; run what waits for the commit when it has left."""
    outer = current_transaction()
    here = outer if outer is not None and outer.session is session else Transaction(session)
    commits = commits_of(session)
    commits.held += 1
    token = scope.transaction.set(here)
    try:
        yield
    finally:
        if here is not outer:
            here.end()
        # A generator that is closed from another context cannot restore that one, and need not.
        with suppress(ValueError):
            scope.transaction.reset(token)
        commits.held -= 1
        commits.release()


@contextmanager
def inner(session: Session) -> Iterator[None]:
    # A session with several databases has no connection to ask for: it begins each at its first use.
    with suppress(UnboundExecutionError):
        begin_for_real(session.connection())
    savepoint = session.begin_nested()
    try:
        yield
        if session.get_nested_transaction() is not savepoint:
            raise TransactionError(OVERLAP)
        savepoint.commit()
    except BaseException:
        _take_back(session, savepoint)
        raise


def _take_back(session: Session, savepoint: SessionTransaction) -> None:
    if session.get_nested_transaction() is savepoint:
        savepoint.rollback()
    else:
        commits_of(session).doomed = OVERLAP


@contextmanager
def undone_with_user(session: Session) -> Iterator[None]:
    try:
        yield
    except BaseException:
        commits_of(session).doomed = UNDONE
        raise
