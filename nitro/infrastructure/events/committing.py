"""Commits that an emit waits for, and the publishing after them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack

from blinker import ANY

from nitro.errors import DispatchError, TransactionError
from nitro.infrastructure import scope
from nitro.infrastructure.events.handler import Handler
from nitro.infrastructure.events.ports import Call, dispatcher
from nitro.infrastructure.logs import get_logger

logger = get_logger("nitro.events")


NEVER_MAPPED_TYPES = frozenset({str, int, float, bool, bytes, type(None), type(ANY)})
"""Types whose values cannot be in a session of SQLAlchemy."""


def commit_to_wait_for(call: Call, *, flush: bool = False) -> scope.Commit | None:
    """Returns the commit that this emit waits for, or None.

    Args:
        call: sender and arguments of the emit.
        flush: whether its pending instances are flushed, so that they have their ids.

    Raises:
        TransactionError: this thread cannot wait for the commit, or the instances are in sessions of two databases.
    """
    return (
        dispatcher().find_commit(call, flush=flush) if _may_hold_mapped_instances(call) else scope.transaction_to_join()
    )


async def flush_async_sessions(call: Call) -> None:
    """Flushes pending instances and reads expired columns, in sessions that must be awaited."""
    if _may_hold_mapped_instances(call):
        await dispatcher().flush(call)


def _may_hold_mapped_instances(call: Call) -> bool:
    """Whether a value of the call may be in a session of the user; False before SQLAlchemy's ORM is loaded."""
    values = (call.sender, *call.args, *call.kwargs.values())
    return "sqlalchemy.orm" in sys.modules and not NEVER_MAPPED_TYPES.issuperset(map(type, values))


def enclosing_commit(call: Call) -> scope.Commit | None:
    """Returns the commit of the transaction around this emit's inline handlers, also of a read-only one, or None."""
    current = scope.current_transaction()
    if current is not None:
        return current
    try:
        return dispatcher().find_commit(call, reading=True) if _may_hold_mapped_instances(call) else None
    except TransactionError:  # raised later, when a handler has to wait for the commit
        return None


def begin_savepoint(handler: Handler, call: Call) -> ExitStack | None:
    """Begins the savepoint of a sync handler with on_error="log"; returns None without a transaction to protect.

    Raises:
        Exception: a pending write of the emitter failed, which is not an error of the handler.
    """
    commit = None if handler.on_error == "raise" else enclosing_commit(call)
    if commit is None:
        return None
    stack = ExitStack()
    stack.enter_context(commit.savepoint())
    return stack


async def begin_async_savepoint(handler: Handler, call: Call) -> AsyncExitStack | None:
    """Begins the savepoint of an awaited async handler with on_error="log", or returns None."""
    commit = None if handler.on_error == "raise" else enclosing_commit(call)
    if commit is None:
        return None
    stack = AsyncExitStack()
    await stack.enter_async_context(commit.savepoint_async())
    return stack


def warn_dropped(label: str) -> None:
    """Logs that work which waited for a commit is dropped."""
    logger.warning("%s is dropped: its session was closed without a commit", label)


def publish_after_commit(publish: Callable[[], None]) -> None:
    """Publishes after a commit and logs errors, which nothing can handle then; never blocks the thread of a loop."""
    from nitro.infrastructure.events.background import running_loop

    def publish_or_log() -> None:
        try:
            publish()
        except DispatchError as error:
            for handler in error.handlers:
                logger.exception("handler %s was not dispatched after its commit", handler)
        except Exception:
            logger.exception("offloaded handlers were not dispatched after their commit")

    loop = running_loop()
    if loop is None:
        publish_or_log()
    else:
        loop.run_in_executor(None, publish_or_log)
