"""Steps: how a delivery came where it is, as far as its row tells: of its publications only the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nitro.infrastructure.outbox.registry import Entry


@dataclass(frozen=True, slots=True)
class Step:
    """What a delivery came into.

    Attributes:
        state: one of a delivery's, `retried` or `replayed`.
        run: number of the run that began or ended; 0 for none.
    """

    at: datetime
    state: str
    run: int = 0
    why: str = ""

    def __str__(self) -> str:
        number = f" (run {self.run})" if self.run else ""
        return f"{self.state}{number}" + (f" ({self.why})" if self.why else "")


def steps_of(entry: Entry) -> list[Step]:
    """The steps of a delivery, the earliest first."""
    steps = sorted(_steps(entry), key=lambda step: step.at)
    if entry.state == "waiting":
        since = steps[-1].at if steps else entry.emitted
        until = f"until {entry.due:%H:%M:%S}" if entry.due is not None else ""
        steps.append(Step(since, "waiting", why=until))
    return steps


def last_run_of(entry: Entry) -> datetime | None:
    """When the run began that goes on, or has closed the delivery; None when the last one is in the history."""
    return entry.started if entry.attempts > (entry.history[-1].run if entry.history else 0) else None


def _steps(entry: Entry) -> Iterator[Step]:
    for run in entry.history:
        if run.started is not None:
            yield Step(run.started, "running", run.run)
        yield Step(run.ended, run.outcome, run.run if run.outcome == "retried" else 0, run.why)
    if entry.replayed is not None:
        yield Step(entry.replayed, "replayed")
    if entry.published is not None:
        yield Step(entry.published, "queued")
    last = last_run_of(entry)
    if last is not None:
        yield Step(last, "running", entry.attempts)
    if entry.closed is not None:
        yield Step(entry.closed, entry.state)
