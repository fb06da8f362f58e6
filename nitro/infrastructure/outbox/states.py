"""Column values for changes of state: to waiting, for another run, or to dead letter; and the states to display."""

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
"""Values of columns of a delivery, by column name."""

IMMEDIATELY = 0.0
"""Value of `due_at` that is due by any clock."""
RUN_AGAIN: ColumnValues = {"state": WAITING, "due_at": IMMEDIATELY, "due_since": now()}
"""Values of a delivery that is due from now on."""
EXPIRED_ERROR = "expired before it started"
EXPIRED_RETRY_ERROR = "expired before it ran again"

PUBLISHED: Final = "published"
"""State to display for an untracked delivery that is done: its message was published; only the broker knows more."""
DisplayState = State | Literal["published"]
"""A state as commands and their JSON show it."""
DISPLAY_STATES: tuple[DisplayState, ...] = (
    *OPEN_STATES,
    DONE,
    PUBLISHED,
    *(state for state in CLOSED_STATES if state != DONE),
)

MAX_HISTORY_CHARACTERS = 4000
"""Characters of a history after which no further runs are added."""
MAX_REASON_CHARACTERS = 300
"""Characters of the reason of a run in the history."""


def due_after(seconds: ColumnElement[float]) -> ColumnElement[float]:
    """Returns `due_at` after a delay; without a delay, `IMMEDIATELY`."""
    return case((seconds == 0, IMMEDIATELY), else_=now() + seconds)


def display_state(state: State, promise: str) -> DisplayState:
    """Returns the state to display: `published` instead of `done` for an untracked delivery.

    Args:
        state: state of its row.
        promise: `delivery=` of its handler.
    """
    return PUBLISHED if state == DONE and promise not in TRACKED_DELIVERIES else state


def is_in_states(states: Iterable[str]) -> ColumnElement[bool]:
    """Returns the condition for deliveries with one of these displayed states; it uses the partial indexes."""
    c, shown = deliveries.c, set(states)
    stored = _has_stored_state((shown | {DONE}) - {PUBLISHED} if PUBLISHED in shown else shown)
    if (PUBLISHED in shown) == (DONE in shown):
        return stored
    is_other_kind = c.promise.in_(TRACKED_DELIVERIES) if PUBLISHED in shown else c.promise.not_in(TRACKED_DELIVERIES)
    return stored & ~((c.state == DONE) & is_other_kind)


def _has_stored_state(states: set[str]) -> ColumnElement[bool]:
    """Returns the condition for deliveries with one of these stored states."""
    c = deliveries.c
    open_states, other_states = sorted(states & set(OPEN_STATES)), sorted(states - {*OPEN_STATES, DEAD})
    alternatives = [
        *([c.closed_at.is_(None) & c.state.in_(open_states)] if open_states else []),
        *([is_dead()] if DEAD in states else []),
        *([c.state.in_(other_states)] if other_states else []),
    ]
    return or_(false(), *alternatives)


def dead_values(error: str | ColumnElement[str]) -> ColumnValues:
    """Returns the values of a dead letter."""
    return {"state": DEAD, "closed_at": now(), "error": _storable_error(error)}


def expired_values() -> ColumnValues:
    """Returns the values of an expired delivery, a dead letter."""
    return dead_values(case((deliveries.c.attempts == 0, EXPIRED_ERROR), else_=EXPIRED_RETRY_ERROR))


def waiting_values(due_at: ColumnElement[float] | float, error: str) -> ColumnValues:
    """Returns the values of a delivery that waits until `due_at`."""
    return {"state": WAITING, "due_at": due_at, "error": to_storable(error)}


def retry_values(seconds: float, error: str) -> ColumnValues:
    """Returns the values of a delivery whose run has failed, to run again after so many seconds."""
    delay = literal(seconds, Double)
    return {
        **waiting_values(due_after(delay), error),
        "due_since": now() + delay,
        "retries": deliveries.c.retries + 1,
        **history_values(error),
    }


def history_values(why: str) -> ColumnValues:
    """Returns the history with the current run added, which does not close the delivery."""
    c = deliveries.c
    earlier = func.coalesce(c.history, "")
    reason = json.dumps(to_storable(exception_line(why)[:MAX_REASON_CHARACTERS]))
    fields = {"run": c.attempts, "started": c.started_at, "ended": now()}
    line: ColumnElement[str] = literal("{", Text)
    for name, value in fields.items():
        line = line + f'"{name}":' + func.coalesce(cast(value, String), "null") + ","
    line = line + f'"why":{reason}}}\n'
    return {"history": case((func.length(earlier) < MAX_HISTORY_CHARACTERS, earlier + line), else_=earlier)}


def history_with_death(row: Any) -> str:
    """Returns the history of a dead letter with its error as the last line.

    The error is of its last run, or of a later failure such as expiry.

    Args:
        row: the delivery, with attempts, times, error and history.
    """
    earlier = row.history or ""
    last = json.loads(earlier.splitlines()[-1])["run"] if earlier else 0
    started = row.started_at if row.attempts > last else None
    why = exception_line(row.error or "")[:MAX_REASON_CHARACTERS]
    death = {"run": row.attempts, "started": started, "ended": row.closed_at, "why": why, "outcome": DEAD}
    return f"{earlier}{json.dumps(death)}\n"


def waiting_or_dead_values(
    is_last: ColumnElement[bool], due_at: ColumnElement[float] | float, error: str
) -> ColumnValues:
    """Returns the values of a dead letter where `is_last` holds, else of a delivery that waits until `due_at`."""
    return {
        **waiting_values(due_at, error),
        "state": case((is_last, DEAD), else_=WAITING),
        "closed_at": case((is_last, now())),
    }


def _storable_error(error: str | ColumnElement[str]) -> str | ColumnElement[str]:
    return to_storable(error) if isinstance(error, str) else error
