"""Committing: which commit an emit waits for, and what happens after it."""

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
"""Types of values that cannot be in a session."""


def commit_to_wait_for(call: Call, *, flush: bool = False) -> scope.Commit | None:
    """The commit that this emit waits for, or None.

    Args:
        call: what is emitted.
        flush: write the instances in it that wait to be, so that they have their ids.

    Raises:
        TransactionError: there is none that this thread can wait for, or there are those of two databases.
    """
    return (
        dispatcher().find_commit(call, flush=flush) if _may_hold_mapped_instances(call) else scope.transaction_to_join()
    )


async def flush_async_sessions(call: Call) -> None:
    """Write the instances that wait to be, and read expired columns, of sessions that must be awaited."""
    if _may_hold_mapped_instances(call):
        await dispatcher().flush(call)


def _may_hold_mapped_instances(call: Call) -> bool:
    """Whether anything in it can be in a session of the user's own; nothing is mapped before SQLAlchemy is loaded."""
    values = (call.sender, *call.args, *call.kwargs.values())
    return "sqlalchemy.orm" in sys.modules and not NEVER_MAPPED_TYPES.issuperset(map(type, values))


def enclosing_commit(call: Call) -> scope.Commit | None:
    """The commit of the transaction that this emit's inline handlers run in, be it one that has only read, or None."""
    current = scope.current_transaction()
    if current is not None:
        return current
    try:
        return dispatcher().find_commit(call, reading=True) if _may_hold_mapped_instances(call) else None
    except TransactionError:  # raised once something has to wait for it
        return None


def begin_savepoint(handler: Handler, call: Call) -> ExitStack | None:
    """What undoes a sync handler alone whose failure is only logged, begun; None where there is nothing to keep apart.

    Raises:
        Exception: what the emitter has not flushed yet cannot be written, which is no failure of the handler.
    """
    commit = None if handler.on_error == "raise" else enclosing_commit(call)
    if commit is None:
        return None
    begun = ExitStack()
    begun.enter_context(commit.savepoint())
    return begun


async def begin_async_savepoint(handler: Handler, call: Call) -> AsyncExitStack | None:
    """The same of an async handler that is awaited."""
    commit = None if handler.on_error == "raise" else enclosing_commit(call)
    if commit is None:
        return None
    begun = AsyncExitStack()
    await begun.enter_async_context(commit.savepoint_async())
    return begun


def warn_dropped(what: str) -> None:
    """Say that something does not happen any more."""
    logger.warning("%s is dropped: its session was closed without a commit", what)


def publish_after_commit(send: Callable[[], None]) -> None:
    """Publish after a commit, when nothing can be raised any more; never on a running loop's thread."""
    from nitro.infrastructure.events.background import running_loop

    def publish() -> None:
        try:
            send()
        except DispatchError as error:
            for handler in error.handlers:
                logger.exception("handler %s was not dispatched after its commit", handler)
        except Exception:
            logger.exception("offloaded handlers were not dispatched after their commit")

    loop = running_loop()
    if loop is None:
        publish()
    else:
        loop.run_in_executor(None, publish)
