"""Committing: which commit an emit waits for, and what happens after it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack

from nitro.errors import DispatchError, TransactionError
from nitro.infrastructure import scope
from nitro.infrastructure.events.dispatcher import Call, dispatcher
from nitro.infrastructure.events.handler import Handler, identity_of
from nitro.infrastructure.logs import logger_named

logger = logger_named("nitro.events")


def commit_of(call: Call) -> scope.Commit | None:
    """The commit that this emit waits for, or None; only entities can be in a session of the user's own.

    Raises:
        TransactionError: there is none that this thread can wait for, or there are those of two databases.
    """
    if any(identity_of(value) is not None for value in (call.sender, *call.args, *call.kwargs.values())):
        return dispatcher().commit(call)
    return scope.transaction_to_join()


def commit_around(call: Call) -> scope.Commit | None:
    """The commit of the transaction that this emit's inline handlers run in, or None."""
    current = scope.current_transaction()
    if current is not None:
        return current
    try:
        return commit_of(call)
    except TransactionError:  # raised once something has to wait for it
        return None


def begun_savepoint(handler: Handler, call: Call) -> ExitStack | None:
    """What undoes a sync handler alone whose failure is only logged, begun; None where there is nothing to keep apart.

    Raises:
        Exception: what the emitter has not flushed yet cannot be written, which is no failure of the handler.
    """
    commit = None if handler.on_error == "raise" else commit_around(call)
    if commit is None:
        return None
    begun = ExitStack()
    begun.enter_context(commit.savepoint())
    return begun


async def begun_awaited_savepoint(handler: Handler, call: Call) -> AsyncExitStack | None:
    """The same of an async handler that is awaited."""
    commit = None if handler.on_error == "raise" else commit_around(call)
    if commit is None:
        return None
    begun = AsyncExitStack()
    await begun.enter_async_context(commit.awaited_savepoint())
    return begun


def warn_of_drop(what: str) -> None:
    """Say that something does not happen any more."""
    logger.warning("%s is dropped: its session was closed without a commit", what)


def publish_committed(send: Callable[[], None]) -> None:
    """Publish after a commit, when nothing can be raised any more; never on a running loop's thread."""
    import asyncio

    def publish() -> None:
        try:
            send()
        except DispatchError as error:
            for handler in error.handlers:
                logger.exception("handler %s was not dispatched after its commit", handler)
        except Exception:
            logger.exception("offloaded handlers were not dispatched after their commit")

    loop = asyncio._get_running_loop()
    if loop is None:
        publish()
    else:
        loop.run_in_executor(None, publish)
