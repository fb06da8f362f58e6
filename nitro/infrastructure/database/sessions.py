"""What follows any SQLAlchemy session, Nitro's or the user's own: who waits for its commit, whether it has written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, SessionTransactionOrigin
from sqlalchemy.util.concurrency import in_greenlet

from nitro.errors import TransactionError
from nitro.infrastructure import scope
from nitro.infrastructure.database.tables import CREATED
from nitro.infrastructure.logs import logger_named

logger = logger_named("nitro.database")

COMMITS = "nitro_commits"
WRITTEN = "nitro_written"

Callback = Callable[[], None]


@dataclass(slots=True)
class _Waiting:
    savepoint: SessionTransaction | None
    callback: Callback | None = None
    abandoned: Callback | None = None
    undone: Callback | None = None
    last: Callback | None = None
    written: bool = False
    written_in: SessionTransaction | None = None


class Commits:
    """The callbacks that wait for the outermost commit of one session.

    Attributes:
        session: whose commit it is.
        held: how many `transaction()` blocks are open; what is due runs when the last one has ended.
        doomed: why the session must not commit, or None.
    """

    __slots__ = ("_due", "_released", "_waiting", "doomed", "held", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._waiting: list[_Waiting] = []
        self._due: list[Callback] = []
        self._released: SessionTransaction | None = None
        self.held = 0
        self.doomed: str | None = None

    def after_commit(self, callback: Callback, *, abandoned: Callback | None = None) -> None:
        """Call `callback` once after the outermost commit; never after a rollback, also of the savepoint it is in.

        Args:
            callback: what to call, outside of the transaction.
            abandoned: called instead when the session is closed with neither commit nor rollback.
        """
        self._waiting.append(_Waiting(self.session.get_nested_transaction(), callback, abandoned))

    def after_rollback(self, callback: Callback) -> None:
        """Call `callback` once if this is rolled back, also with its savepoint alone, or closed without a commit."""
        if not self.session.in_transaction():  # in which case SQLAlchemy would not tell of its rollback
            self.session.begin()
        self._waiting.append(_Waiting(self.session.get_nested_transaction(), undone=callback))

    def before_commit(self, callback: Callback) -> None:
        """Call `callback` as the last thing in the transaction; never after a rollback, nor if its savepoint is."""
        self._waiting.append(_Waiting(self.session.get_nested_transaction(), last=callback))

    def committing(self) -> None:
        """A savepoint, or the whole, is about to be committed; a failure here keeps it from being.

        Which of them SQLAlchemy does not say, so what waits is written now, and again if this savepoint is rolled back.
        """
        for entry in self._waiting:
            if entry.last is not None and not entry.written:
                entry.last()
                entry.written, entry.written_in = True, self.session.get_nested_transaction()

    def committed(self) -> None:
        """The savepoint, or the whole, was committed."""
        savepoint = self.session.get_nested_transaction()
        if savepoint is not None:
            self._released = savepoint
            return
        self._due += [entry.callback for entry in self._waiting if entry.callback is not None]
        self._waiting.clear()

    def rolled_back(self) -> None:
        """The savepoint, or the whole, was rolled back."""
        savepoint = self.session.get_nested_transaction()
        for entry in self._waiting:
            if entry.written_in is savepoint:
                entry.written, entry.written_in = False, None
        undone = [entry for entry in self._waiting if savepoint is None or entry.savepoint is savepoint]
        self._drop(undone)

    def ended(self, transaction: SessionTransaction) -> None:
        """A savepoint or the whole is over, however it went."""
        if transaction.nested and transaction is self._released:
            self._hand_up(transaction)
        elif transaction.nested:
            self._abandon([entry for entry in self._waiting if entry.savepoint is transaction])
        elif transaction.parent is None:
            self.doomed = None
            self._abandon(self._waiting)
            self.release()

    def release(self) -> None:
        """Run what is due, unless a `transaction()` block is still open; a failure is logged and the next runs."""
        if self.held or not self._due:
            return
        due, self._due = self._due, []
        token = scope.transaction.set(None)
        try:
            for callback in due:
                _run(callback)
        finally:
            scope.transaction.reset(token)

    def _hand_up(self, savepoint: SessionTransaction) -> None:
        parent = savepoint.parent if savepoint.parent is not None and savepoint.parent.nested else None
        for entry in self._waiting:
            if entry.savepoint is savepoint:
                entry.savepoint = parent
            if entry.written_in is savepoint:
                entry.written_in = parent

    def _abandon(self, entries: list[_Waiting]) -> None:
        self._drop(entries)
        for entry in entries:
            if entry.abandoned is not None:
                _run(entry.abandoned)

    def _drop(self, entries: list[_Waiting]) -> None:
        """Wait no more for the commit of these."""
        self._waiting = [entry for entry in self._waiting if not any(entry is each for each in entries)]
        for entry in entries:
            if entry.undone is not None:
                _run(entry.undone)


def _run(callback: Callback) -> None:
    try:
        callback()
    except Exception:
        logger.exception("%r failed after the transaction had ended", callback)


def commits_of(session: Session) -> Commits:
    """The callbacks that wait for this session, whoever made it."""
    found: Commits | None = session.info.get(COMMITS)
    if found is None:
        found = session.info[COMMITS] = Commits(session)
    return found


def in_own_transaction(session: Session) -> bool:
    """Whether somebody will want to commit this session: it was begun explicitly, or has pending or flushed writes."""
    transaction = session.get_transaction()
    explicit = transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN
    return explicit or WRITTEN in session.info or bool(session.new or session.dirty or session.deleted)


def must_await(session: Session) -> bool:
    """Whether it belongs to an `AsyncSession` that the calling code cannot wait for: it may add, but not ask.

    Code within `await session.run_sync(...)` can.
    """
    return bool(getattr(getattr(session.bind, "dialect", None), "is_async", False)) and not in_greenlet()


@event.listens_for(Session, "before_commit")
def _committing(session: Session) -> None:
    commits: Commits | None = session.info.get(COMMITS)
    if commits is None:
        return
    if commits.doomed:
        raise TransactionError(commits.doomed)
    commits.committing()


@event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    if COMMITS in session.info:
        session.info[COMMITS].committed()


@event.listens_for(Session, "after_rollback")
def _rolled_back(session: Session) -> None:
    session.info.pop(CREATED, None)
    if COMMITS in session.info:
        session.info[COMMITS].rolled_back()


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(CREATED, None)
        session.info.pop(WRITTEN, None)
    if COMMITS in session.info:
        session.info[COMMITS].ended(transaction)


@event.listens_for(Session, "after_flush")
def _flushed(session: Session, _context: object) -> None:
    session.info[WRITTEN] = True


@event.listens_for(Session, "do_orm_execute")
def _executed(execution: ORMExecuteState) -> None:
    if execution.is_insert or execution.is_update or execution.is_delete:
        execution.session.info[WRITTEN] = True
