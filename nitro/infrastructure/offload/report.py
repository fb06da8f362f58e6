"""Story: what became of an emission where it was made, as the outbox and the journal keep it."""

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
"""Characters of a reason or an error."""

HandlerOutcome = Literal["done", "started", "failed", "raised", "cancelled", "skipped", "queued", "dropped"]
"""`started`: it is async, and nobody waited for its end; `failed`: it stopped nothing; `raised`: it ended the emission;
`dropped`: it would have been queued, but for a rollback.
"""


class HandlerReport(TypedDict, total=False):
    """What became of one handler; of an offloaded one only what its delivery does not say.

    Attributes:
        at: seconds after the emission began.
        took: seconds.
        why: it was skipped, or failed.
        id: Celery task id of one that was queued without a row.
        delivery: the promise of that one, or of one that was skipped and would have been queued.
    """

    handler: str
    outcome: HandlerOutcome
    at: float
    took: float
    why: str
    id: str
    delivery: str


class EmissionReport(TypedDict):
    """What became of an emission.

    Attributes:
        at: when it began, in seconds since 1970 by the emitter's clock.
        took: seconds until its inline handlers had ended.
        process: host and process id of the emitter.
        caused_in: the handler that emitted it.
        error: what ended it.
        rolled_back: whether the transaction that it was in was not committed; missing where it was.
    """

    at: float
    took: float
    process: str
    caused_in: str | None
    error: str | None
    handlers: list[HandlerReport]
    rolled_back: NotRequired[bool]


def report_of(emission: Emission, error: BaseException | None = None, *, rows: bool = True) -> EmissionReport:
    """The story of an emission as far as it has come.

    Args:
        rows: whether its tracked deliveries have rows, which tell of them.
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


def rolled_back_report(story: EmissionReport) -> EmissionReport:
    """The same story of an emission whose transaction was rolled back: nothing that it would have queued was."""
    turns: list[HandlerReport] = [
        {**turn, "outcome": "dropped"} if turn["outcome"] == "queued" else turn for turn in story["handlers"]
    ]
    return {**story, "handlers": turns, "rolled_back": True}


def report_json(story: EmissionReport) -> str:
    """The story as JSON text."""
    return _encode_json(story)


def _handler_reports(
    emission: Emission, began: float, error: BaseException | None, elsewhere: Container[str | None]
) -> Iterator[HandlerReport]:
    """In the order of the plan; without those whose turn never came, and without deliveries told of elsewhere."""
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
        elif name in emission.offloaded and handler.offload is not None and handler.offload.delivery not in elsewhere:
            promise = handler.offload.delivery or ""
            yield {"handler": name, "outcome": "queued", "id": emission.offloaded[name], "delivery": promise}


def _inline_report(emission: Emission, handler: Handler, began: float, errors: list[BaseException]) -> HandlerReport:
    start, end = emission.timings[handler.name]
    turn: HandlerReport = {"handler": handler.name, "outcome": "started", "at": _round_seconds(start - began)}
    if end is not None:
        turn["took"] = _round_seconds(end - start)
        turn["outcome"] = "cancelled" if emission.cancelled_by == handler.name else "done"
    failure: Any = emission.failed.get(handler.name)
    if failure is not None:
        turn["outcome"], turn["why"] = "failed", describe_error(failure)[:MAX_TEXT_CHARS]
    unnoted = errors[0] if errors and emission.handler == handler.name else None  # such as KeyboardInterrupt
    raised = next((each for each in errors if is_annotated(handler, emission, each)), unnoted)
    if raised is not None:
        turn["outcome"], turn["why"] = "raised", describe_error(raised)[:MAX_TEXT_CHARS]
    return turn


def _flat_errors(error: BaseException) -> Iterator[BaseException]:
    """The error, and of a group those in it."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _flat_errors(each)


def _round_seconds(seconds: float) -> float:
    return round(seconds, 6)


_encode_json: Callable[[EmissionReport], str] = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


@cache
def _process_name(pid: int) -> str:
    return f"{gethostname()}/{pid}"
