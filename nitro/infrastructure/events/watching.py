"""Watching: who sees an emission from its begin to its end: the log at DEBUG, a journal, metrics, a trace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from logging import DEBUG

from nitro.infrastructure.events.dispatcher import Call, dispatcher
from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.shown import shown
from nitro.infrastructure.logs import facts, logger_named, plain

logger = logger_named("nitro.events")

Watcher = Callable[[Emission, Call], AbstractContextManager[object]]
"""Entered when the handlers of an emission begin, left when they have ended and its offloads are on their way."""

watchers: list[Watcher] = []

debugs: Mapping[int, bool] = logger._cache  # type: ignore[attr-defined]  # isEnabledFor costs an emit a tenth
"""Whether the logger is enabled for a level, as it has found out since levels changed; missing when it has not."""

_UNWATCHED = nullcontext()


def prepare() -> None:
    """Have the journal there where it is wanted, before anything is emitted; it lies in a layer above."""
    if os.environ.get("NITRO_JOURNAL") not in (None, "", "off"):
        dispatcher()


def watched(emission: Emission, call: Call) -> AbstractContextManager[object]:
    """What surrounds an emission."""
    debug = logger.isEnabledFor(DEBUG)
    return _surrounded(emission, call, debug) if watchers or debug else _UNWATCHED


@contextmanager
def _surrounded(emission: Emission, call: Call, debug: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for watcher in [*([_logged] if debug else ()), *watchers]:
            stack.enter_context(watcher(emission, call))
        yield


@contextmanager
def _logged(emission: Emission, call: Call) -> Iterator[None]:
    outcome = ""
    try:
        yield
    except BaseException as error:
        outcome = f", raised {type(error).__name__}"
        raise
    finally:
        if emission.cancelled_by is not None:
            outcome += f", cancelled by {emission.cancelled_by}"
        sender = shown(call.sender)
        counts = (len(emission.turns), len(emission.skipped), len(emission.failed), len(emission.offloaded))
        line = "event %s by %s: %d ran, %d skipped, %d failed, %d queued%s (emission %s)"
        told = (plain(emission.event), plain(sender), *counts, plain(outcome), emission.id)
        logger.debug(line, *told, extra=facts(event=emission.event, sender=sender, emission=emission.id))
