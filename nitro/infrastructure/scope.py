"""Scope: the transaction that the running code is in, and the emission that caused it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from typing import Protocol

from nitro.errors import OpenElsewhere


class Commit(Protocol):
    """A future commit, as the layers above the database see it."""

    def after_commit(self, callback: Callable[[], None], *, abandoned: Callable[[], None] | None = None) -> None:
        """Calls `callback` once after the outermost commit, outside the transaction; never after a rollback.

        Args:
            callback: function without arguments.
            abandoned: function that is called instead when the session is closed with neither commit nor rollback.
        """

    def savepoint(self) -> AbstractContextManager[None]:
        """Returns a savepoint around a block: a block that fails is rolled back, and the transaction goes on."""

    def savepoint_async(self) -> AbstractAsyncContextManager[None]:
        """Returns a savepoint around a block that awaits; concurrent tasks enter theirs one after the other."""

    def after_rollback(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once after a rollback of transaction or savepoint, or after a close without a commit."""


class Transaction(Commit, Protocol):
    """An open `transaction()`."""

    @property
    def is_usable(self) -> bool:
        """Whether the transaction is open and belongs to the calling thread."""

    @property
    def is_open_elsewhere(self) -> bool:
        """Whether the transaction is open and belongs to another thread."""

    def owned_by_this_thread(self) -> AbstractContextManager[None]:
        """Lends the transaction to the calling thread, while the thread that it belongs to waits."""


class Cause(Protocol):
    """An emission, as the emissions of its handlers see it."""

    @property
    def id(self) -> str: ...
    @property
    def root(self) -> str | None: ...
    @property
    def handler(self) -> str | None: ...


transaction_variable: ContextVar[Transaction | None] = ContextVar("nitro_transaction", default=None)


def current_transaction() -> Transaction | None:
    """Returns the open transaction of this thread and context, or None."""
    transaction = transaction_variable.get()
    return transaction if transaction is not None and transaction.is_usable else None


def transaction_to_join() -> Transaction | None:
    """Returns the open transaction that a write here becomes a part of, or None.

    Raises:
        OpenElsewhere: the open transaction belongs to another thread, so that a write here cannot be a part of it.
    """
    transaction = transaction_variable.get()
    if transaction is None or transaction.is_usable:
        return transaction
    if transaction.is_open_elsewhere:
        raise OpenElsewhere
    return None


class _ThreadState(threading.local):
    """The emissions whose sync handlers run on this thread, innermost last."""

    def __init__(self) -> None:
        self.emissions: list[Cause] = []


thread_state = _ThreadState()

# The emission of an async handler or of a worker's delivery, the thread on which it began, and how deep the sync
# handlers of that thread were nested then. A deeper nesting now means that a sync handler runs inside that handler.
_task_cause: ContextVar[tuple[Cause, int, int] | None] = ContextVar("nitro_emission", default=None)

task_cause = _task_cause.get
"""Returns the emission of the async handler or the worker's delivery that runs in this context, or None."""


def set_task_cause(emission: Cause) -> Token[tuple[Cause, int, int] | None]:
    """Makes `emission` the cause of the emissions of this context, until `reset_task_cause`."""
    return _task_cause.set((emission, threading.get_ident(), len(thread_state.emissions)))


def reset_task_cause(token: Token[tuple[Cause, int, int] | None]) -> None:
    """Undoes `set_task_cause`."""
    _task_cause.reset(token)


@contextmanager
def push_cause(emission: Cause) -> Iterator[None]:
    """Makes `emission` the cause of the emissions of this thread's sync handlers, as long as the block lasts."""
    thread_state.emissions.append(emission)
    try:
        yield
    finally:
        thread_state.emissions.pop()


def current_cause() -> Cause | None:
    """Returns the emission whose handler runs here, inline or in a worker, or None."""
    stack, task = thread_state.emissions, _task_cause.get()
    if task is None:
        return stack[-1] if stack else None
    emission, thread, depth = task
    nested_deeper = len(stack) > (depth if thread == threading.get_ident() else 0)
    return stack[-1] if nested_deeper else emission
