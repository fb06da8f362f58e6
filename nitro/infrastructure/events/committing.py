"""Committing: which commit an emit waits for, and what happens after it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from blinker import ANY

from nitro.errors import DispatchError
from nitro.infrastructure import scope
from nitro.infrastructure.events.dispatcher import Call, dispatcher
from nitro.infrastructure.logs import logger_named

logger = logger_named("nitro.events")


PLAIN = frozenset({str, int, float, bool, bytes, type(None), type(ANY)})
"""Types of values that cannot be in a session."""


def commit_of(call: Call, *, flush: bool = False) -> scope.Commit | None:
    """The commit that this emit waits for, or None.

    Args:
        call: what is emitted.
        flush: write the instances in it that wait to be, so that they have their ids.
    """
    return dispatcher().commit(call, flush=flush) if _may_be_mapped(call) else scope.current_transaction()


async def flush_of(call: Call) -> None:
    """Write the instances that wait to be, of sessions that must be awaited."""
    if _may_be_mapped(call):
        await dispatcher().flush(call)


def _may_be_mapped(call: Call) -> bool:
    """Whether anything in it can be in a session of the user's own; nothing is mapped before SQLAlchemy is loaded."""
    values = (call.sender, *call.args, *call.kwargs.values())
    return "sqlalchemy.orm" in sys.modules and not PLAIN.issuperset(map(type, values))


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
