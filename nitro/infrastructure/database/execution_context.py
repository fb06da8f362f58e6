"""The place in which a `transaction()` block was entered: a process, a thread and a context."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

from nitro.errors import LeftElsewhere

ExitArguments = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

_inherited_blocks: list[object] = []
_context_mark: ContextVar[None] = ContextVar("nitro_place", default=None)


def this_thread() -> tuple[int, int]:
    """Returns the ids of the running process and thread; under gevent the thread is the greenlet."""
    return os.getpid(), threading.get_ident()


class ExecutionContext:
    """The process, thread and context in which it is created."""

    __slots__ = ("_thread", "_token")

    def __init__(self) -> None:
        self._thread = this_thread()
        self._token = _context_mark.set(None)

    @contextmanager
    def exit_arguments(self, error: BaseException | None, block: object) -> Iterator[ExitArguments | None]:
        """Yields the arguments for `__exit__` of a block that was entered here. Call it once.

        In another place the block ends with LeftElsewhere, so that it rolls back. A `KeyboardInterrupt`, a
        cancellation and the like stay as they are. A process that was forked inside of the block gets None: the
        connection is its parent's, and the block is kept, so that nothing closes it.

        Args:
            error: the exception that leaves the block, or None.
            block: the context manager to keep in a forked process.

        Raises:
            LeftElsewhere: the block is left in another process, thread or context; its cause is the error.
        """
        difference = self._difference()
        if difference == "process":
            _inherited_blocks.append(block)
        arguments = None if difference == "process" else _exit_arguments(error)
        if difference is None or not (error is None or isinstance(error, Exception | GeneratorExit)):
            yield arguments
            return
        left_elsewhere = LeftElsewhere(difference)
        left_elsewhere.__cause__ = error
        try:
            yield arguments and (LeftElsewhere, left_elsewhere, None)
        except Exception as exit_error:
            # The rollback failed: a connection of SQLite works in its own thread only.
            raise left_elsewhere from exit_error
        raise left_elsewhere

    def _difference(self) -> str | None:
        """Returns the part of the place that differs here: "process", "thread", "context" or None."""
        difference: str | None = None
        try:
            _context_mark.reset(self._token)
        except ValueError:  # the token was created in another context
            difference = "context"
        if self._thread[0] != os.getpid():
            return "process"
        return "thread" if self._thread != this_thread() else difference


def _exit_arguments(error: BaseException | None) -> ExitArguments:
    """Returns the arguments for `__exit__`."""
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)
