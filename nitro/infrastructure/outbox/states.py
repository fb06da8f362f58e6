"""What a delivery that will not go on as it is becomes: one that waits to be published again, or a dead letter."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import ColumnElement, Double, String, Text, case, cast, func, literal

from nitro.infrastructure.logs import said
from nitro.infrastructure.outbox.tables import DEAD, WAITING, deliveries, now, storable

Values = dict[str, Any]
"""Of the columns of a delivery."""

AT_ONCE = 0.0
"""Due whatever becomes of the clock."""
AGAIN: Values = {"state": WAITING, "due_at": AT_ONCE, "due_since": now()}
"""Due anew, from now on."""
EXPIRED = "expired before it started"

MOST_HISTORY = 4000
"""Characters of history after which no more of it is written."""
MOST_REASON = 300


def due_after(seconds: ColumnElement[float]) -> ColumnElement[float]:
    """When something is due that is put off; what is not is due whatever becomes of the clock."""
    return case((seconds == 0, AT_ONCE), else_=now() + seconds)


def dead(error: str | ColumnElement[str]) -> Values:
    """A dead letter."""
    return {"state": DEAD, "closed_at": now(), "error": _storable(error)}


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
