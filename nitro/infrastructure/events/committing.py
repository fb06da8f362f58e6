"""Committing: which commit an emit waits for, and what happens after it."""

from __future__ import annotations

from collections.abc import Callable

from nitro.errors import DispatchError
from nitro.infrastructure import scope
from nitro.infrastructure.events.dispatcher import Call, dispatcher
from nitro.infrastructure.events.handler import identity_of
from nitro.infrastructure.logs import logger_named

logger = logger_named("nitro.events")


def commit_of(call: Call) -> scope.Commit | None:
    """The commit that this emit waits for, or None; only entities can be in a session of the user's own."""
    if any(identity_of(value) is not None for value in (call.sender, *call.args, *call.kwargs.values())):
        return dispatcher().commit(call)
    return scope.current_transaction()


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
