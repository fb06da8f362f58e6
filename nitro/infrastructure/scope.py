"""What surrounds the running code: its transaction, the emission that caused it, its delivery."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from typing import Protocol

from nitro.errors import OpenElsewhere


class Commit(Protocol):
    """What the layers above the database may know of a commit that is to come."""

    def after_commit(self, callback: Callable[[], None], *, abandoned: Callable[[], None] | None = None) -> None:
        """Call `callback` once after the outermost commit, outside the transaction; never after a rollback.

        Args:
            callback: what to call.
            abandoned: called instead when the session is closed with neither commit nor rollback.
        """

    def savepoint(self) -> AbstractContextManager[None]:
        """A part of the transaction that is undone alone when the block fails."""

    def savepoint_async(self) -> AbstractAsyncContextManager[None]:
        """The same around code that awaits; of concurrent tasks one after the other."""

    def after_rollback(self, callback: Callable[[], None]) -> None:
        """Call `callback` once if this is rolled back, also with its savepoint alone, or closed without a commit."""


class Transaction(Commit, Protocol):
    """An open `transaction()`."""

    @property
    def is_usable(self) -> bool:
        """Whether it is still open and the calling thread is its own."""

    @property
    def is_open_elsewhere(self) -> bool:
        """Whether it is still open, and another thread is its own."""

    def owned_by_this_thread(self) -> AbstractContextManager[None]:
        """Make the calling thread its own one, while the thread that it belongs to waits."""


class Cause(Protocol):
    """An emission as its children see it."""

    @property
    def id(self) -> str: ...
    @property
    def root(self) -> str | None: ...
    @property
    def handler(self) -> str | None: ...


transaction_variable: ContextVar[Transaction | None] = ContextVar("nitro_transaction", default=None)


def current_transaction() -> Transaction | None:
    """The open transaction of this thread and context, if there is one."""
    found = transaction_variable.get()
    return found if found is not None and found.is_usable else None


def transaction_to_join() -> Transaction | None:
    """The same, for what is to be committed with it.

    Raises:
        OpenElsewhere: one is open that belongs to another thread; what is done here could not be part of it.
    """
    found = transaction_variable.get()
    if found is None or found.is_usable:
        return found
    if found.is_open_elsewhere:
        raise OpenElsewhere
    return None


class _ThreadState(threading.local):
    """The emissions whose sync handlers run on this thread, innermost last."""

    def __init__(self) -> None:
        self.emissions: list[Cause] = []


thread_state = _ThreadState()

# An async handler or a worker's delivery: the emission, and how deep this thread's sync handlers
# were nested when it began, which tells whose turn it is where the two kinds interleave.
_task_cause: ContextVar[tuple[Cause, int, int] | None] = ContextVar("nitro_emission", default=None)


task_cause = _task_cause.get
"""Whether an async handler or a worker's delivery runs here: None when none does."""


def set_task_cause(emission: Cause) -> Token[tuple[Cause, int, int] | None]:
    """Make `emission` the cause of what this context emits; undo with `reset_task_cause`."""
    return _task_cause.set((emission, threading.get_ident(), len(thread_state.emissions)))


def reset_task_cause(token: Token[tuple[Cause, int, int] | None]) -> None:
    """Undo `set_task_cause`."""
    _task_cause.reset(token)


@contextmanager
def push_cause(emission: Cause) -> Iterator[None]:
    """Make `emission` the cause of what this thread's sync handlers emit."""
    thread_state.emissions.append(emission)
    try:
        yield
    finally:
        thread_state.emissions.pop()


def current_cause() -> Cause | None:
    """The emission whose handler is running here, inline or in a worker."""
    stack, task = thread_state.emissions, _task_cause.get()
    if task is None:
        return stack[-1] if stack else None
    emission, thread, depth = task
    nested_deeper = len(stack) > (depth if thread == threading.get_ident() else 0)
    return stack[-1] if nested_deeper else emission
