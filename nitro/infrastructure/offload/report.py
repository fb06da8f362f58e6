"""The report of an emission: its outcome in the emitter, as the outbox and the journal store it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterator
from functools import cache
from socket import gethostname
from time import perf_counter, time
from typing import Any, Literal, NotRequired, TypedDict

from nitro.infrastructure.events import Emission
from nitro.infrastructure.events.handler import Handler
from nitro.infrastructure.events.run import is_annotated
from nitro.infrastructure.logs import describe_error
from nitro.infrastructure.offload.envelope import TRACKED_DELIVERIES

MAX_TEXT_CHARS = 500
"""Characters of a reason or an error after which it is cut."""

HandlerOutcome = Literal["done", "started", "failed", "raised", "cancelled", "skipped", "queued", "dropped"]
"""Outcome of a handler in the emitter.

`started`: an async handler was started and not awaited; `failed`: it raised with `on_error="log"`;
`raised`: its exception ended the emission; `dropped`: a rollback kept it from being queued.
"""


class HandlerReport(TypedDict, total=False):
    """The outcome of one handler; a tracked delivery is left out, because its row has the outcome.

    Attributes:
        at: seconds from the start of the emission to the start of the handler.
        took: seconds that the handler ran.
        why: the reason why it was skipped, or its error.
        id: Celery task id of an untracked delivery.
        delivery: `delivery=` of an untracked delivery, or of an offloaded handler that was skipped.
    """

    handler: str
    outcome: HandlerOutcome
    at: float
    took: float
    why: str
    id: str
    delivery: str


class EmissionReport(TypedDict):
    """The outcome of an emission in the emitter.

    Attributes:
        at: the start of the emission, in seconds since 1970 by the emitter's clock.
        took: seconds until its inline handlers had ended.
        process: host and process id of the emitter.
        caused_in: the handler that emitted it, or None.
        error: the error that ended it, or None.
        rolled_back: true if its transaction was rolled back; else missing.
    """

    at: float
    took: float
    process: str
    caused_in: str | None
    error: str | None
    handlers: list[HandlerReport]
    rolled_back: NotRequired[bool]


def report_of(emission: Emission, error: BaseException | None = None, *, rows: bool = True) -> EmissionReport:
    """Returns the report of an emission up to now.

    Args:
        rows: whether its tracked deliveries have rows; the report leaves these deliveries out.
    """
    now, began = perf_counter(), emission.started_at or 0.0
    return {
        "at": time() - (now - began),
        "took": _round_seconds(now - began),
        "process": _process_name(os.getpid()),
        "caused_in": emission.caused_in,
        "error": None if error is None else describe_error(error)[:MAX_TEXT_CHARS],
        "handlers": list(_handler_reports(emission, began, error, TRACKED_DELIVERIES if rows else ())),
    }


def rolled_back_report(report: EmissionReport) -> EmissionReport:
    """Returns the report after a rollback of the emission's transaction: queued handlers become dropped ones."""
    handlers: list[HandlerReport] = [
        {**handler, "outcome": "dropped"} if handler["outcome"] == "queued" else handler
        for handler in report["handlers"]
    ]
    return {**report, "handlers": handlers, "rolled_back": True}


def report_json(report: EmissionReport) -> str:
    """Returns the report as JSON text."""
    return _encode_json(report)


def _handler_reports(
    emission: Emission, began: float, error: BaseException | None, excluded: Container[str | None]
) -> Iterator[HandlerReport]:
    """Yields the reports of handlers in the order of the plan, without handlers that were not reached.

    Args:
        excluded: values of `delivery=`; offloaded handlers with one of them are left out.
    """
    errors = [] if error is None else list(_flat_errors(error))
    for handler in emission.plan.handlers if emission.plan is not None else ():
        name = handler.name
        if name in emission.skipped:
            skipped: HandlerReport = {
                "handler": name,
                "outcome": "skipped",
                "why": emission.skipped[name][:MAX_TEXT_CHARS],
            }
            yield skipped if handler.offload is None else {**skipped, "delivery": handler.offload.delivery or ""}
        elif name in emission.timings:
            yield _inline_report(emission, handler, began, errors)
        elif name in emission.offloaded and handler.offload is not None and handler.offload.delivery not in excluded:
            delivery = handler.offload.delivery or ""
            yield {"handler": name, "outcome": "queued", "id": emission.offloaded[name], "delivery": delivery}


def _inline_report(emission: Emission, handler: Handler, began: float, errors: list[BaseException]) -> HandlerReport:
    start, end = emission.timings[handler.name]
    report: HandlerReport = {"handler": handler.name, "outcome": "started", "at": _round_seconds(start - began)}
    if end is not None:
        report["took"] = _round_seconds(end - start)
        report["outcome"] = "cancelled" if emission.cancelled_by == handler.name else "done"
    failure: Any = emission.failed.get(handler.name)
    if failure is not None:
        report["outcome"], report["why"] = "failed", describe_error(failure)[:MAX_TEXT_CHARS]
    # An error such as KeyboardInterrupt is not annotated with the handler's name.
    unannotated = errors[0] if errors and emission.handler == handler.name else None
    raised = next((each for each in errors if is_annotated(handler, emission, each)), unannotated)
    if raised is not None:
        report["outcome"], report["why"] = "raised", describe_error(raised)[:MAX_TEXT_CHARS]
    return report


def _flat_errors(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and, if it is a group, all errors inside it."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _flat_errors(member)


def _round_seconds(seconds: float) -> float:
    return round(seconds, 6)


_encode_json: Callable[[EmissionReport], str] = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


@cache
def _process_name(pid: int) -> str:
    return f"{gethostname()}/{pid}"
