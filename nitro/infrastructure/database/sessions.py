"""Events of every SQLAlchemy session, Nitro's or the user's: callbacks for its commit, and whether it has written."""

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
"""Key in the `info` of a session: its transaction is committed, and its `after_commit` listeners are running."""
OUTER_TRANSACTION_KEY = "nitro_outer"
"""Key in the `info` of a session: its connection was given to it with an open transaction."""

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
        session: the session that commits.
        open_blocks: number of open `transaction()` blocks; due callbacks run when the last block has ended.
        commit_error: the reason for which the session must not commit, or None.
        emitted_mappers: the mappers of the instances in the emits of this transaction.
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
        """Calls `callback` once after the outermost commit; never after a rollback of its savepoint or transaction.

        Args:
            callback: the function to call, outside of the transaction.
            abandoned: called instead when the session is closed with neither commit nor rollback.
        """
        self._pending.append(_PendingCallback(self.session.get_nested_transaction(), callback, abandoned))

    def after_rollback(self, callback: Callback) -> None:
        """Calls `callback` once after a rollback of its savepoint or transaction, or a close without a commit."""
        if not self.session.in_transaction():  # without begin(), SQLAlchemy fires no after_rollback
            self.session.begin()
        self._pending.append(_PendingCallback(self.session.get_nested_transaction(), on_rollback=callback))

    def before_commit(self, callback: Callback) -> None:
        """Calls `callback` at the end of the transaction; never after a rollback of its savepoint or transaction."""
        self._pending.append(_PendingCallback(self.session.get_nested_transaction(), before_commit=callback))

    def savepoint(self) -> AbstractContextManager[None]:
        """A savepoint around the block: only the block's work is undone when it fails.

        Code that cannot await its `AsyncSession` can only add instances to it: they are expunged.
        """
        return self._expunge_on_failure() if must_await(self.session) else savepoints.savepoint(self.session)

    def savepoint_async(self) -> AbstractAsyncContextManager[None]:
        """A savepoint around async code. Concurrent tasks run one at a time."""
        return savepoints.savepoint_async(self.session, awaits=must_await(self.session))

    def run_before_commit(self) -> None:
        """Runs the `before_commit` callbacks; an exception prevents the commit.

        SQLAlchemy does not tell the commit of a savepoint from that of the transaction here. So the callbacks run now,
        and again after a rollback of this savepoint.
        """
        for entry in self._pending:
            if entry.before_commit is not None and not entry.has_run:
                entry.before_commit()
                entry.has_run, entry.ran_in = True, self.session.get_nested_transaction()

    def note_commit(self) -> None:
        """Makes callbacks due after a commit; after that of a savepoint it remembers the savepoint."""
        savepoint = self.session.get_nested_transaction()
        if savepoint is not None:
            self._released_savepoint = savepoint
            return
        self._due += [entry.callback for entry in self._pending if entry.callback is not None]
        self._pending.clear()

    def note_rollback(self) -> None:
        """Drops the callbacks of the savepoint, or of the whole transaction, that was rolled back."""
        savepoint = self.session.get_nested_transaction()
        for entry in self._pending:
            if entry.ran_in is savepoint:
                entry.has_run, entry.ran_in = False, None
        dropped = [entry for entry in self._pending if savepoint is None or entry.savepoint is savepoint]
        self._drop(dropped)

    def note_end(self, transaction: SessionTransaction) -> None:
        """Moves or abandons the callbacks of a transaction, or of a savepoint, that has ended."""
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
        """Runs the due callbacks, unless a `transaction()` block is open. An error is logged, and the next one runs."""
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
        instances_before, count_before = self.session.new, len(self._pending)
        try:
            yield
        except BaseException:
            for instance in self.session.new:
                if instance not in instances_before:
                    self.session.expunge(instance)
            self._drop(self._pending[count_before:])
            raise

    def _move_to_parent(self, savepoint: SessionTransaction) -> None:
        """Hands the callbacks of a released savepoint to the savepoint around it."""
        parent = savepoint.parent if savepoint.parent is not None and savepoint.parent.nested else None
        for entry in self._pending:
            if entry.savepoint is savepoint:
                entry.savepoint = parent
            if entry.ran_in is savepoint:
                entry.ran_in = parent

    def _abandon(self, entries: list[_PendingCallback]) -> None:
        """Drops callbacks whose transaction ended with neither commit nor rollback."""
        self._drop(entries)
        for entry in entries:
            if entry.abandoned is not None:
                _run_callback(entry.abandoned)

    def _drop(self, entries: list[_PendingCallback]) -> None:
        """Removes callbacks, and runs their `on_rollback`."""
        dropped_ids = set(map(id, entries))
        self._pending = [entry for entry in self._pending if id(entry) not in dropped_ids]
        for entry in entries:
            if entry.on_rollback is not None:
                _run_callback(entry.on_rollback)


def _run_callback(callback: Callback) -> None:
    try:
        callback()
    except Exception:
        logger.exception("%r failed after the transaction had ended", callback)


def commits_of(session: Session) -> Commits:
    """Returns the callbacks of a session."""
    commits: Commits | None = session.info.get(COMMITS_KEY)
    if commits is None:
        commits = session.info[COMMITS_KEY] = Commits(session)
    return commits


def has_work_to_commit(session: Session) -> bool:
    """Whether a session is to be committed: it was begun explicitly, or has pending or flushed writes."""
    if COMMITTED_KEY in session.info:
        return False
    transaction = session.get_transaction()
    is_explicit = transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN
    return is_explicit or savepoints.has_user_savepoint(session) or has_writes(session)


def has_writes(session: Session) -> bool:
    """Whether a session has written in its transaction, or will when it is flushed."""
    return WRITTEN_KEY in session.info or bool(session.new or session.dirty or session.deleted)


def mark_written(session: Session) -> None:
    """Records that a session has written in its transaction."""
    session.info[WRITTEN_KEY] = True


def has_outer_transaction(session: Session) -> bool:
    """Whether the connection of a session was in a transaction already, whose owner can undo the session's commit."""
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
    """Records writes: each flush and each bulk method begins a subtransaction."""
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
