"""Watching: who sees an emission from its begin to its end: the log at DEBUG, a journal, metrics, a trace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from logging import DEBUG

from nitro.infrastructure.events.display import describe_sender
from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.ports import Call, dispatcher
from nitro.infrastructure.hooks import Hooks
from nitro.infrastructure.logs import escape_text, get_logger, log_extra

logger = get_logger("nitro.events")

Observer = Callable[[Emission, Call], AbstractContextManager[object]]
"""Entered when the handlers of an emission begin, left when they have ended and its offloads are on their way."""

active_observers: Hooks[Observer] = Hooks()

enabled_levels: Mapping[int, bool] = logger._cache  # type: ignore[attr-defined]  # isEnabledFor costs an emit a tenth
"""Whether the logger is enabled for a level, as it has found out since levels changed; missing when it has not."""

_NO_OBSERVERS = nullcontext()


def load_journal_if_enabled() -> None:
    """Have the journal there where it is wanted, before anything is emitted; it lies in a layer above."""
    if os.environ.get("NITRO_JOURNAL") not in (None, "", "off"):
        dispatcher()


def observe(emission: Emission, call: Call) -> AbstractContextManager[object]:
    """What surrounds an emission."""
    debug = logger.isEnabledFor(DEBUG)
    return _enter_observers(emission, call, debug) if active_observers or debug else _NO_OBSERVERS


@contextmanager
def _enter_observers(emission: Emission, call: Call, debug: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for watcher in [*([_log_emission] if debug else ()), *active_observers]:
            stack.enter_context(watcher(emission, call))
        yield


@contextmanager
def _log_emission(emission: Emission, call: Call) -> Iterator[None]:
    outcome = ""
    try:
        yield
    except BaseException as error:
        outcome = f", raised {type(error).__name__}"
        raise
    finally:
        if emission.cancelled_by is not None:
            outcome += f", cancelled by {emission.cancelled_by}"
        sender = describe_sender(call.sender)
        counts = (len(emission.timings), len(emission.skipped), len(emission.failed), len(emission.offloaded))
        line = "event %s by %s: %d ran, %d skipped, %d failed, %d queued%s (emission %s)"
        told = (escape_text(emission.event), escape_text(sender), *counts, escape_text(outcome), emission.id)
        logger.debug(line, *told, extra=log_extra(event=emission.event, sender=sender, emission=emission.id))
