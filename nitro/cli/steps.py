"""Steps: how a delivery came where it is, as far as its row tells: of its publications only the last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
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
        first: number of the first of several runs that ended alike, of which it is the last; 0 for none.
    """

    at: datetime
    state: str
    run: int = 0
    why: str = ""
    first: int = 0

    def __str__(self) -> str:
        runs = f"runs {self.first} to {self.run}" if self.first else f"run {self.run}"
        number = f" ({runs})" if self.run else ""
        return f"{self.state}{number}" + (f" ({self.why})" if self.why else "")


def steps_of(entry: Entry) -> list[Step]:
    """The steps of a delivery, the earliest first."""
    steps = sorted(_steps(entry), key=lambda step: step.at)
    if entry.state == "waiting":
        since = steps[-1].at if steps else entry.emitted
        until = f"until {entry.due:%H:%M:%S}" if entry.due is not None else ""
        steps.append(Step(since, "waiting", why=until))
    return steps


def folded(steps: Iterable[Step]) -> list[Step]:
    """The same, with runs that failed alike one after the other as one step, when the last of them did."""
    found: list[Step] = []
    for step in steps:
        before = -2 if found and found[-1].state == "running" else -1
        earlier = found[before] if len(found) >= -before else None
        if earlier is not None and _is_like(step, earlier):
            found[before:] = [replace(step, first=earlier.first or earlier.run)]
        else:
            found.append(step)
    return found


def _is_like(step: Step, earlier: Step) -> bool:
    """Whether both are runs that failed with one error, but for its numbers."""
    return step.state == earlier.state == "retried" and _worded(step.why) == _worded(earlier.why)


def _worded(why: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "#", why)


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
