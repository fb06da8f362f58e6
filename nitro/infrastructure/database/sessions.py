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
from nitro.infrastructure.database.binds import NITRO_BIND_KEY, must_await
from nitro.infrastructure.database.tables import TABLES_CREATED_KEY
from nitro.infrastructure.logs import get_logger

logger = get_logger("nitro.database")

COMMITS_KEY = "nitro_commits"
WRITTEN_KEY = "nitro_written"
COMMITTED_KEY = "nitro_over"
"""In the `info` of a session: its transaction is committed, and what listens to that is being told."""
OUTER_TRANSACTION_KEY = "nitro_outer"
"""In the `info` of a session: it takes part in a transaction that was open on its connection before."""

Callback = Callable[[], None]


@dataclass(slots=True)
class _PendingCallback:
    savepoint: SessionTransaction | None
    callback: Callback | None = None
    abandoned: Callback | None = None
    on_rollback: Callback | None = None
    before_commit: Callback | None = None
    has_run: bool = False
    ran_in: SessionTransaction | None = None


class Commits:
    """The callbacks that wait for the outermost commit of one session.

    Attributes:
        session: whose commit it is.
        open_blocks: how many `transaction()` blocks are open; what is due runs when the last one has ended.
        commit_error: why the session must not commit, or None.
        emitted_mappers: of the instances that its latest emits were about.
    """

    __slots__ = ("_due", "_pending", "_released_savepoint", "commit_error", "emitted_mappers", "open_blocks", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._pending: list[_PendingCallback] = []
        self._due: list[Callback] = []
        self._released_savepoint: SessionTransaction | None = None
        self.open_blocks = 0
        self.commit_error: str | None = None
        self.emitted_mappers: dict[Mapper[Any], None] = {}

    def after_commit(self, callback: Callback, *, abandoned: Callback | None = None) -> None:
        """Call `callback` once after the outermost commit; never after a rollback, also of the savepoint it is in.

        Args:
            callback: what to call, outside of the transaction.
            abandoned: called instead when the session is closed with neither commit nor rollback.
        """
        self._pending.append(_PendingCallback(self.session.get_nested_transaction(), callback, abandoned))

    def after_rollback(self, callback: Callback) -> None:
        """Call `callback` once if this is rolled back, also with its savepoint alone, or closed without a commit."""
        if not self.session.in_transaction():  # in which case SQLAlchemy would not tell of its rollback
            self.session.begin()
        self._pending.append(_PendingCallback(self.session.get_nested_transaction(), on_rollback=callback))

    def before_commit(self, callback: Callback) -> None:
        """Call `callback` as the last thing in the transaction; never after a rollback, nor if its savepoint is."""
        self._pending.append(_PendingCallback(self.session.get_nested_transaction(), before_commit=callback))

    def savepoint(self) -> AbstractContextManager[None]:
        """A part of the transaction that is undone alone when the block fails.

        Code that cannot wait for its `AsyncSession` can only add to it: just that is taken back.
        """
        return self._expunge_on_failure() if must_await(self.session) else savepoints.savepoint(self.session)

    def savepoint_async(self) -> AbstractAsyncContextManager[None]:
        """The same around code that awaits; of concurrent tasks one after the other."""
        return savepoints.savepoint_async(self.session, awaits=must_await(self.session))

    def run_before_commit(self) -> None:
        """A savepoint, or the whole, is about to be committed; a failure here keeps it from being.

        Which of them SQLAlchemy does not say, so what waits is written now, and again if this savepoint is rolled back.
        """
        for entry in self._pending:
            if entry.before_commit is not None and not entry.has_run:
                entry.before_commit()
                entry.has_run, entry.ran_in = True, self.session.get_nested_transaction()

    def note_commit(self) -> None:
        """The savepoint, or the whole, was committed."""
        savepoint = self.session.get_nested_transaction()
        if savepoint is not None:
            self._released_savepoint = savepoint
            return
        self._due += [entry.callback for entry in self._pending if entry.callback is not None]
        self._pending.clear()

    def note_rollback(self) -> None:
        """The savepoint, or the whole, was rolled back."""
        savepoint = self.session.get_nested_transaction()
        for entry in self._pending:
            if entry.ran_in is savepoint:
                entry.has_run, entry.ran_in = False, None
        undone = [entry for entry in self._pending if savepoint is None or entry.savepoint is savepoint]
        self._drop(undone)

    def note_end(self, transaction: SessionTransaction) -> None:
        """A savepoint or the whole is over, however it went."""
        if transaction.nested and transaction is self._released_savepoint:
            self._move_to_parent(transaction)
        elif transaction.nested:
            self._abandon([entry for entry in self._pending if entry.savepoint is transaction])
        elif transaction.parent is None:
            self.commit_error = None
            self.emitted_mappers.clear()
            self._abandon(self._pending)
            self.run_due()

    def run_due(self) -> None:
        """Run what is due, unless a `transaction()` block is still open; a failure is logged and the next runs."""
        if self.open_blocks or not self._due:
            return
        due, self._due = self._due, []
        token = scope.transaction_variable.set(None)
        try:
            for callback in due:
                _run_callback(callback)
        finally:
            scope.transaction_variable.reset(token)

    @contextmanager
    def _expunge_on_failure(self) -> Iterator[None]:
        earlier, waiting = self.session.new, len(self._pending)
        try:
            yield
        except BaseException:
            for added in self.session.new:
                if added not in earlier:
                    self.session.expunge(added)
            self._drop(self._pending[waiting:])
            raise

    def _move_to_parent(self, savepoint: SessionTransaction) -> None:
        parent = savepoint.parent if savepoint.parent is not None and savepoint.parent.nested else None
        for entry in self._pending:
            if entry.savepoint is savepoint:
                entry.savepoint = parent
            if entry.ran_in is savepoint:
                entry.ran_in = parent

    def _abandon(self, entries: list[_PendingCallback]) -> None:
        self._drop(entries)
        for entry in entries:
            if entry.abandoned is not None:
                _run_callback(entry.abandoned)

    def _drop(self, entries: list[_PendingCallback]) -> None:
        """Wait no more for the commit of these."""
        dropped = set(map(id, entries))
        self._pending = [entry for entry in self._pending if id(entry) not in dropped]
        for entry in entries:
            if entry.on_rollback is not None:
                _run_callback(entry.on_rollback)


def _run_callback(callback: Callback) -> None:
    try:
        callback()
    except Exception:
        logger.exception("%r failed after the transaction had ended", callback)


def commits_of(session: Session) -> Commits:
    """The callbacks that wait for this session, whoever made it."""
    found: Commits | None = session.info.get(COMMITS_KEY)
    if found is None:
        found = session.info[COMMITS_KEY] = Commits(session)
    return found


def has_work_to_commit(session: Session) -> bool:
    """Whether somebody will want to commit this session: it was begun explicitly, or has pending or flushed writes."""
    if COMMITTED_KEY in session.info:
        return False
    transaction = session.get_transaction()
    explicit = transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN
    return explicit or savepoints.has_user_savepoint(session) or has_writes(session)


def has_writes(session: Session) -> bool:
    """Whether it has written in its transaction, or will when it is flushed."""
    return WRITTEN_KEY in session.info or bool(session.new or session.dirty or session.deleted)


def mark_written(session: Session) -> None:
    """Remember that its transaction has written something."""
    session.info[WRITTEN_KEY] = True


def has_outer_transaction(session: Session) -> bool:
    """Whether its commit may be undone by whoever began the transaction of the connection that it was given."""
    return OUTER_TRANSACTION_KEY in session.info or (
        session.get_transaction() is None and _is_bound_to_open_transaction(session)
    )


def _is_bound_to_open_transaction(session: Session) -> bool:
    return isinstance(session.bind, Connection) and session.bind.in_transaction()


@event.listens_for(Session, "before_commit")
def _on_before_commit(session: Session) -> None:
    commits: Commits | None = session.info.get(COMMITS_KEY)
    if commits is None:
        return
    if commits.commit_error:
        raise TransactionError(commits.commit_error)
    commits.run_before_commit()


@event.listens_for(Session, "after_commit")
def _on_after_commit(session: Session) -> None:
    if not session.in_nested_transaction():
        session.info[COMMITTED_KEY] = True
    if COMMITS_KEY in session.info:
        session.info[COMMITS_KEY].note_commit()


@event.listens_for(Session, "after_rollback")
def _on_after_rollback(session: Session) -> None:
    session.info.pop(TABLES_CREATED_KEY, None)
    if COMMITS_KEY in session.info:
        session.info[COMMITS_KEY].note_rollback()


@event.listens_for(Session, "after_transaction_create")
def _on_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    """A flush, and each of the bulk methods that no flush belongs to, writes in a part of its own."""
    if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
        mark_written(session)
    elif transaction.parent is None and _is_bound_to_open_transaction(session):
        session.info[OUTER_TRANSACTION_KEY] = True


@event.listens_for(Session, "after_transaction_end")
def _on_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        for name in (TABLES_CREATED_KEY, WRITTEN_KEY, COMMITTED_KEY, OUTER_TRANSACTION_KEY, NITRO_BIND_KEY):
            session.info.pop(name, None)
    if COMMITS_KEY in session.info:
        session.info[COMMITS_KEY].note_end(transaction)


@event.listens_for(Session, "do_orm_execute")
def _on_orm_execute(execution: ORMExecuteState) -> None:
    if execution.is_insert or execution.is_update or execution.is_delete:
        mark_written(execution.session)
