"""What a delivery that will not go on as it is becomes: one that waits to be published again, or a dead letter."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Double, String, Text, case, cast, false, func, literal, or_

from nitro.infrastructure.logs import exception_line
from nitro.infrastructure.offload.envelope import TRACKED_DELIVERIES
from nitro.infrastructure.outbox.schema import (
    CLOSED_STATES,
    DEAD,
    DONE,
    OPEN_STATES,
    WAITING,
    State,
    deliveries,
    is_dead,
    now,
)
from nitro.infrastructure.outbox.texts import to_storable

ColumnValues = dict[str, Any]
"""Of the columns of a delivery."""

IMMEDIATELY = 0.0
"""Due whatever becomes of the clock."""
RUN_AGAIN: ColumnValues = {"state": WAITING, "due_at": IMMEDIATELY, "due_since": now()}
"""Due anew, from now on."""
EXPIRED_ERROR = "expired before it started"
EXPIRED_RETRY_ERROR = "expired before it ran again"

PUBLISHED: Final = "published"
"""A row of an untracked delivery that is done: its message has left, and what becomes of it only the broker knows."""
DisplayState = State | Literal["published"]
"""A state as people and scripts see it."""
DISPLAY_STATES: tuple[DisplayState, ...] = (
    *OPEN_STATES,
    DONE,
    PUBLISHED,
    *(state for state in CLOSED_STATES if state != DONE),
)

MAX_HISTORY_CHARACTERS = 4000
"""Characters of history after which no more of it is written."""
MAX_REASON_CHARACTERS = 300


def due_after(seconds: ColumnElement[float]) -> ColumnElement[float]:
    """When something is due that is put off; what is not is due whatever becomes of the clock."""
    return case((seconds == 0, IMMEDIATELY), else_=now() + seconds)


def display_state(state: State, promise: str) -> DisplayState:
    """Returns the state of a delivery as it is shown: only of a tracked one does `done` say that its handler has run.

    Args:
        state: of its row.
        promise: `delivery=` of its handler.
    """
    return PUBLISHED if state == DONE and promise not in TRACKED_DELIVERIES else state


def is_in_states(states: Iterable[str]) -> ColumnElement[bool]:
    """Deliveries that are shown in one of these states; open ones and dead letters are found by their indexes."""
    c, wanted = deliveries.c, set(states)
    stored = _has_stored_state((wanted | {DONE}) - {PUBLISHED} if PUBLISHED in wanted else wanted)
    if (PUBLISHED in wanted) == (DONE in wanted):
        return stored
    unwanted = c.promise.in_(TRACKED_DELIVERIES) if PUBLISHED in wanted else c.promise.not_in(TRACKED_DELIVERIES)
    return stored & ~((c.state == DONE) & unwanted)


def _has_stored_state(states: set[str]) -> ColumnElement[bool]:
    """Deliveries whose rows say one of these states."""
    c = deliveries.c
    opened, others = sorted(states & set(OPEN_STATES)), sorted(states - {*OPEN_STATES, DEAD})
    ways = [
        *([c.closed_at.is_(None) & c.state.in_(opened)] if opened else []),
        *([is_dead()] if DEAD in states else []),
        *([c.state.in_(others)] if others else []),
    ]
    return or_(false(), *ways)


def dead_values(error: str | ColumnElement[str]) -> ColumnValues:
    """A dead letter."""
    return {"state": DEAD, "closed_at": now(), "error": _storable_error(error)}


def expired_values() -> ColumnValues:
    """A dead letter that was not run in time."""
    return dead_values(case((deliveries.c.attempts == 0, EXPIRED_ERROR), else_=EXPIRED_RETRY_ERROR))


def waiting_values(due_at: ColumnElement[float] | float, error: str) -> ColumnValues:
    """To be published when it is due."""
    return {"state": WAITING, "due_at": due_at, "error": to_storable(error)}


def retry_values(seconds: float, error: str) -> ColumnValues:
    """To be published in so many seconds, after a run that failed."""
    after = literal(seconds, Double)
    return {
        **waiting_values(due_after(after), error),
        "due_since": now() + after,
        "retries": deliveries.c.retries + 1,
        **history_values(error),
    }


def history_values(why: str) -> ColumnValues:
    """The run that ends here, added to the history of those that did not close the delivery."""
    c = deliveries.c
    earlier = func.coalesce(c.history, "")
    reason = json.dumps(to_storable(exception_line(why)[:MAX_REASON_CHARACTERS]))
    facts = {"run": c.attempts, "started": c.started_at, "ended": now()}
    line: ColumnElement[str] = literal("{", Text)
    for name, value in facts.items():
        line = line + f'"{name}":' + func.coalesce(cast(value, String), "null") + ","
    line = line + f'"why":{reason}}}\n'
    return {"history": case((func.length(earlier) < MAX_HISTORY_CHARACTERS, earlier + line), else_=earlier)}


def history_with_death(row: Any) -> str:
    """The history of a dead letter, and as its last line what it died of: its last run, or what came after it.

    Args:
        row: its attempts, times, error and history.
    """
    earlier = row.history or ""
    last = json.loads(earlier.splitlines()[-1])["run"] if earlier else 0
    started = row.started_at if row.attempts > last else None
    why = exception_line(row.error or "")[:MAX_REASON_CHARACTERS]
    death = {"run": row.attempts, "started": started, "ended": row.closed_at, "why": why, "outcome": DEAD}
    return f"{earlier}{json.dumps(death)}\n"


def waiting_or_dead_values(last: ColumnElement[bool], due_at: ColumnElement[float] | float, error: str) -> ColumnValues:
    """To be published when it is due, or a dead letter if that was the last time."""
    return {
        **waiting_values(due_at, error),
        "state": case((last, DEAD), else_=WAITING),
        "closed_at": case((last, now())),
    }


def _storable_error(error: str | ColumnElement[str]) -> str | ColumnElement[str]:
    return to_storable(error) if isinstance(error, str) else error
