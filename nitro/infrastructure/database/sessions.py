"""What follows any SQLAlchemy session, Nitro's or the user's own: who waits for its commit, whether it has written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, SessionTransaction, SessionTransactionOrigin

from nitro.errors import TransactionError
from nitro.infrastructure import scope
from nitro.infrastructure.database import savepoints
from nitro.infrastructure.database.binds import HOME, must_await
from nitro.infrastructure.database.tables import CREATED
from nitro.infrastructure.logs import logger_named

logger = logger_named("nitro.database")

COMMITS = "nitro_commits"
WRITTEN = "nitro_written"
OVER = "nitro_over"
"""In the `info` of a session: its transaction is committed, and what listens to that is being told."""
OUTER = "nitro_outer"
"""In the `info` of a session: it takes part in a transaction that was open on its connection before."""

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
        mappers: of the instances that its latest emits were about.
    """

    __slots__ = ("_due", "_released", "_waiting", "doomed", "held", "mappers", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._waiting: list[_Waiting] = []
        self._due: list[Callback] = []
        self._released: SessionTransaction | None = None
        self.held = 0
        self.doomed: str | None = None
        self.mappers: dict[Mapper[Any], None] = {}

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

    def savepoint(self) -> AbstractContextManager[None]:
        """A part of the transaction that is undone alone when the block fails.

        Code that cannot wait for its `AsyncSession` can only add to it: just that is taken back.
        """
        return self._taken_back() if must_await(self.session) else savepoints.savepoint(self.session)

    def awaited_savepoint(self) -> AbstractAsyncContextManager[None]:
        """The same around code that awaits; of concurrent tasks one after the other."""
        return savepoints.awaited_savepoint(self.session, awaits=must_await(self.session))

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
            self.mappers.clear()
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

    @contextmanager
    def _taken_back(self) -> Iterator[None]:
        earlier, waiting = self.session.new, len(self._waiting)
        try:
            yield
        except BaseException:
            for added in self.session.new:
                if added not in earlier:
                    self.session.expunge(added)
            self._drop(self._waiting[waiting:])
            raise

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
        dropped = set(map(id, entries))
        self._waiting = [entry for entry in self._waiting if id(entry) not in dropped]
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
    if OVER in session.info:
        return False
    transaction = session.get_transaction()
    explicit = transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN
    return explicit or savepoints.has_foreign(session) or has_writes(session)


def has_writes(session: Session) -> bool:
    """Whether it has written in its transaction, or will when it is flushed."""
    return WRITTEN in session.info or bool(session.new or session.dirty or session.deleted)


def note_writes(session: Session) -> None:
    """Remember that its transaction has written something."""
    session.info[WRITTEN] = True


def ends_elsewhere(session: Session) -> bool:
    """Whether its commit may be undone by whoever began the transaction of the connection that it was given."""
    return OUTER in session.info or (session.get_transaction() is None and _is_given_one(session))


def _is_given_one(session: Session) -> bool:
    return isinstance(session.bind, Connection) and session.bind.in_transaction()


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
    if not session.in_nested_transaction():
        session.info[OVER] = True
    if COMMITS in session.info:
        session.info[COMMITS].committed()


@event.listens_for(Session, "after_rollback")
def _rolled_back(session: Session) -> None:
    session.info.pop(CREATED, None)
    if COMMITS in session.info:
        session.info[COMMITS].rolled_back()


@event.listens_for(Session, "after_transaction_create")
def _created(session: Session, transaction: SessionTransaction) -> None:
    """A flush, and each of the bulk methods that no flush belongs to, writes in a part of its own."""
    if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
        note_writes(session)
    elif transaction.parent is None and _is_given_one(session):
        session.info[OUTER] = True


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        for name in (CREATED, WRITTEN, OVER, OUTER, HOME):
            session.info.pop(name, None)
    if COMMITS in session.info:
        session.info[COMMITS].ended(transaction)


@event.listens_for(Session, "do_orm_execute")
def _executed(execution: ORMExecuteState) -> None:
    if execution.is_insert or execution.is_update or execution.is_delete:
        note_writes(execution.session)
