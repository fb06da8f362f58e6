"""What a delivery that will not go on as it is becomes: one that waits to be published again, or a dead letter."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Double, String, Text, case, cast, false, func, literal, or_

from nitro.infrastructure.logs import said
from nitro.infrastructure.offload.parcel import TRACKED
from nitro.infrastructure.outbox.tables import CLOSED, DEAD, DONE, OPEN, WAITING, State, deliveries, is_dead, now
from nitro.infrastructure.outbox.texts import storable

Values = dict[str, Any]
"""Of the columns of a delivery."""

AT_ONCE = 0.0
"""Due whatever becomes of the clock."""
AGAIN: Values = {"state": WAITING, "due_at": AT_ONCE, "due_since": now()}
"""Due anew, from now on."""
EXPIRED = "expired before it started"
EXPIRED_LATER = "expired before it ran again"

PUBLISHED: Final = "published"
"""A row of an untracked delivery that is done: its message has left, and what becomes of it only the broker knows."""
Shown = State | Literal["published"]
"""A state as people and scripts see it."""
SHOWN: tuple[Shown, ...] = (*OPEN, DONE, PUBLISHED, *(state for state in CLOSED if state != DONE))

MOST_HISTORY = 4000
"""Characters of history after which no more of it is written."""
MOST_REASON = 300


def due_after(seconds: ColumnElement[float]) -> ColumnElement[float]:
    """When something is due that is put off; what is not is due whatever becomes of the clock."""
    return case((seconds == 0, AT_ONCE), else_=now() + seconds)


def shown_state(state: State, promise: str) -> Shown:
    """Returns the state of a delivery as it is shown: only of a tracked one does `done` say that its handler has run.

    Args:
        state: of its row.
        promise: `delivery=` of its handler.
    """
    return PUBLISHED if state == DONE and promise not in TRACKED else state


def in_states(states: Iterable[str]) -> ColumnElement[bool]:
    """Deliveries that are shown in one of these states; open ones and dead letters are found by their indexes."""
    c, wanted = deliveries.c, set(states)
    stored = _stored((wanted | {DONE}) - {PUBLISHED} if PUBLISHED in wanted else wanted)
    if (PUBLISHED in wanted) == (DONE in wanted):
        return stored
    unwanted = c.promise.in_(TRACKED) if PUBLISHED in wanted else c.promise.not_in(TRACKED)
    return stored & ~((c.state == DONE) & unwanted)


def _stored(states: set[str]) -> ColumnElement[bool]:
    """Deliveries whose rows say one of these states."""
    c = deliveries.c
    opened, others = sorted(states & set(OPEN)), sorted(states - {*OPEN, DEAD})
    ways = [
        *([c.closed_at.is_(None) & c.state.in_(opened)] if opened else []),
        *([is_dead()] if DEAD in states else []),
        *([c.state.in_(others)] if others else []),
    ]
    return or_(false(), *ways)


def dead(error: str | ColumnElement[str]) -> Values:
    """A dead letter."""
    return {"state": DEAD, "closed_at": now(), "error": _storable(error)}


def expired() -> Values:
    """A dead letter that was not run in time."""
    return dead(case((deliveries.c.attempts == 0, EXPIRED), else_=EXPIRED_LATER))


def waiting(due_at: ColumnElement[float] | float, error: str) -> Values:
    """To be published when it is due."""
    return {"state": WAITING, "due_at": due_at, "error": storable(error)}


def retried(seconds: float, error: str) -> Values:
    """To be published in so many seconds, after a run that failed."""
    after = literal(seconds, Double)
    return {
        **waiting(due_after(after), error),
        "due_since": now() + after,
        "retries": deliveries.c.retries + 1,
        **noted(error),
    }


def noted(why: str) -> Values:
    """The run that ends here, added to the history of those that did not close the delivery."""
    c = deliveries.c
    earlier = func.coalesce(c.history, "")
    reason = json.dumps(storable(said(why)[:MOST_REASON]))
    facts = {"run": c.attempts, "started": c.started_at, "ended": now()}
    line: ColumnElement[str] = literal("{", Text)
    for name, value in facts.items():
        line = line + f'"{name}":' + func.coalesce(cast(value, String), "null") + ","
    line = line + f'"why":{reason}}}\n'
    return {"history": case((func.length(earlier) < MOST_HISTORY, earlier + line), else_=earlier)}


def with_death(row: Any) -> str:
    """The history of a dead letter, and as its last line what it died of: its last run, or what came after it.

    Args:
        row: its attempts, times, error and history.
    """
    earlier = row.history or ""
    last = json.loads(earlier.splitlines()[-1])["run"] if earlier else 0
    started = row.started_at if row.attempts > last else None
    why = said(row.error or "")[:MOST_REASON]
    death = {"run": row.attempts, "started": started, "ended": row.closed_at, "why": why, "outcome": DEAD}
    return f"{earlier}{json.dumps(death)}\n"


def waiting_unless(last: ColumnElement[bool], due_at: ColumnElement[float] | float, error: str) -> Values:
    """To be published when it is due, or a dead letter if that was the last time."""
    return {
        **waiting(due_at, error),
        "state": case((last, DEAD), else_=WAITING),
        "closed_at": case((last, now())),
    }


def _storable(error: str | ColumnElement[str]) -> str | ColumnElement[str]:
    return storable(error) if isinstance(error, str) else error
