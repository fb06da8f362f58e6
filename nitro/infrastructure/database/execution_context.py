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
    """The process and the thread that run here; of greenlets, as gevent says."""
    return os.getpid(), threading.get_ident()


class ExecutionContext:
    """The place where it is made."""

    __slots__ = ("_thread", "_token")

    def __init__(self) -> None:
        self._thread = this_thread()
        self._token = _context_mark.set(None)

    @contextmanager
    def exit_arguments(self, error: BaseException | None, block: object) -> Iterator[ExitArguments | None]:
        """Give how a block that was entered here is to end, and raise if it is left elsewhere; once.

        What ends a task or a program stays what it is. A process that was forked inside the block gets None: the
        connection is its parent's, and the block is kept as it is.

        Args:
            error: with which the block is left, or None.
            block: what is kept.

        Raises:
            LeftElsewhere: it is left in another process, thread or context; its cause is the error.
        """
        kind = self._difference()
        if kind == "process":
            _inherited_blocks.append(block)
        how = None if kind == "process" else _exit_arguments(error)
        if kind is None or not (error is None or isinstance(error, Exception | GeneratorExit)):
            yield how
            return
        left = LeftElsewhere(kind)
        left.__cause__ = error
        try:
            yield how and (LeftElsewhere, left, None)
        except Exception as failed:
            raise left from failed  # to roll back, with a connection that only its own thread may use
        raise left

    def _difference(self) -> str | None:
        """The kind of place that differs here, or None."""
        kind: str | None = None
        try:
            _context_mark.reset(self._token)
        except ValueError:  # it was made in another context
            kind = "context"
        if self._thread[0] != os.getpid():
            return "process"
        return "thread" if self._thread != this_thread() else kind


def _exit_arguments(error: BaseException | None) -> ExitArguments:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)
