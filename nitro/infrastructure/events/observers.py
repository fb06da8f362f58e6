"""Observers of emissions: the log at DEBUG, the journal, metrics and traces."""

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
"""A context manager around an emission: from its first handler to the publishing of its offloads."""

active_observers: Hooks[Observer] = Hooks()

enabled_levels: Mapping[int, bool] = logger._cache  # type: ignore[attr-defined]  # isEnabledFor takes a tenth of an emit
"""The logger's own cache: level → whether it is enabled; a change of levels empties it."""

_NO_OBSERVERS = nullcontext()


def load_journal_if_enabled() -> None:
    """Loads the dispatcher if NITRO_JOURNAL is set, because its entry point also starts the journal."""
    if os.environ.get("NITRO_JOURNAL") not in (None, "", "off"):
        dispatcher()


def observe(emission: Emission, call: Call) -> AbstractContextManager[object]:
    """Returns the context manager around an emission, which enters its observers."""
    debug = logger.isEnabledFor(DEBUG)
    return _enter_observers(emission, call, debug) if active_observers or debug else _NO_OBSERVERS


@contextmanager
def _enter_observers(emission: Emission, call: Call, debug: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for observer in [*([_log_emission] if debug else ()), *active_observers]:
            stack.enter_context(observer(emission, call))
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
        values = (escape_text(emission.event), escape_text(sender), *counts, escape_text(outcome), emission.id)
        logger.debug(line, *values, extra=log_extra(event=emission.event, sender=sender, emission=emission.id))
