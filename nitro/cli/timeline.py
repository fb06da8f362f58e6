"""Timeline of emissions: the steps of each delivery, and a tree of items with time spans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nitro.cli import render
from nitro.cli.times import format_clock
from nitro.infrastructure.logs import escape_text, exception_line

if TYPE_CHECKING:
    from nitro.infrastructure.offload.report import HandlerReport
    from nitro.infrastructure.outbox.history import EmissionRecord
    from nitro.infrastructure.outbox.operations import DeliveryRecord


@dataclass(frozen=True, slots=True)
class Step:
    """A change of a delivery.

    Attributes:
        state: a state of a delivery, `retried` or `replayed`.
        run: number of the run that began or ended; 0 for none.
        first_run: number of the first run, if the step stands for several runs that ended alike; else 0.
    """

    at: datetime
    state: str
    run: int = 0
    why: str = ""
    first_run: int = 0

    def __str__(self) -> str:
        runs = f"runs {self.first_run} to {self.run}" if self.first_run else f"run {self.run}"
        number = f" ({runs})" if self.run else ""
        return f"{self.state}{number}" + (f" ({self.why})" if self.why else "")


def steps_of(entry: DeliveryRecord) -> list[Step]:
    """Returns the steps of a delivery, the earliest first."""
    steps = sorted(_recorded_steps(entry), key=lambda step: step.at)
    if entry.state == "waiting":
        since = steps[-1].at if steps else entry.emitted_at
        until = f"until {entry.due:%H:%M:%S}" if entry.due is not None else ""
        steps.append(Step(since, "waiting", why=until))
    return steps


def fold_failed_runs(steps: Iterable[Step]) -> list[Step]:
    """Returns the steps, with consecutive runs that failed alike as one step, at the time of the last of them."""
    folded: list[Step] = []
    for step in steps:
        index = -2 if folded and folded[-1].state == "running" else -1
        earlier = folded[index] if len(folded) >= -index else None
        if earlier is not None and _is_same_failure(step, earlier):
            folded[index:] = [replace(step, first_run=earlier.first_run or earlier.run)]
        else:
            folded.append(step)
    return folded


def _is_same_failure(step: Step, earlier: Step) -> bool:
    """Whether both steps are runs that failed with the same error, apart from numbers in its text."""
    return step.state == earlier.state == "retried" and _without_numbers(step.why) == _without_numbers(earlier.why)


def _without_numbers(why: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "#", why)


def last_run_start(entry: DeliveryRecord) -> datetime | None:
    """Returns the start of the run that is not in the history: it is running, or has closed the delivery; or None."""
    return entry.started if entry.attempts > (entry.history[-1].run if entry.history else 0) else None


def _recorded_steps(entry: DeliveryRecord) -> Iterator[Step]:
    for run in entry.history:
        if run.started is not None:
            yield Step(run.started, "running", run.run)
        yield Step(run.ended, run.outcome, run.run if run.outcome == "retried" else 0, run.why)
    if entry.replayed is not None:
        yield Step(entry.replayed, "replayed")
    if entry.published is not None:
        yield Step(entry.published, "queued")
    last = last_run_start(entry)
    if last is not None:
        yield Step(last, "running", entry.attempts)
    if entry.closed is not None:
        yield Step(entry.closed, entry.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpan:
    """A span of time of an item.

    Attributes:
        kind: `inline`, `wait` in the queue, or `run` in a worker.
        state: the state in which it ended.
    """

    kind: str
    state: str
    began: datetime
    ended: datetime
    label: str


@dataclass(slots=True, kw_only=True)
class TimelineItem:
    """An emission, or a handler of one.

    Attributes:
        state: the state of a handler; empty for an emission.
        details: text after the title and the state.
        children: handlers of an emission, or emissions of a handler.
    """

    title: str
    state: str = ""
    details: str = ""
    spans: list[TimeSpan] = field(default_factory=list)
    children: list[TimelineItem] = field(default_factory=list)


def timeline_items(emissions: Iterable[EmissionRecord], now: datetime) -> list[TimelineItem]:
    """Returns the items of emissions. The span of a run that has not ended lasts until `now`."""
    return [_root_item(emission, now) for emission in emissions]


def as_text(items: Iterable[TimelineItem]) -> str:
    """Returns a tree of lines for each item."""
    return "\n\n".join("\n".join([_item_line(item), *_tree_lines(item.children, "")]) for item in items)


def _tree_lines(items: Sequence[TimelineItem], indent: str) -> Iterator[str]:
    for item in items:
        last = item is items[-1]
        yield f"{indent}{'└─ ' if last else '├─ '}{_item_line(item)}"
        yield from _tree_lines(item.children, indent + ("   " if last else "│  "))


def _item_line(item: TimelineItem) -> str:
    parts = (escape_text(item.title), render.coloured(item.state), escape_text(item.details))
    return render.COLUMN_GAP.join(part for part in parts if part)


def _root_item(emission: EmissionRecord, now: datetime) -> TimelineItem:
    """Returns the item of an emission at the top of the timeline, which names its parent if it has one."""
    item = _emission_item(emission, now)
    if emission.parent:
        item.details += f"{render.COLUMN_GAP}below {emission.parent}"
    return item


def _emission_item(emission: EmissionRecord, now: datetime) -> TimelineItem:
    item = TimelineItem(title=f"{emission.event or 'a call of the task'} by {emission.sender}")
    parts = [f"{emission.at:%Y-%m-%d} {format_clock(emission.at)} UTC", emission.process, emission.id]
    failures = [
        *([f"raised {emission.error}"] if emission.error else []),
        *(["rolled back"] if emission.rolled_back else []),
    ]
    item.details = render.COLUMN_GAP.join([*filter(None, parts), *failures])
    if emission.took is not None:
        ended = emission.at + timedelta(seconds=emission.took)
        item.spans.append(TimeSpan(kind="inline", state="", began=emission.at, ended=ended, label="inline handlers"))
    handlers = {report["handler"]: _handler_item(emission, report) for report in emission.turns}
    handlers |= {entry.handler: _delivery_item(emission, entry, now) for entry in emission.deliveries}
    item.children = list(handlers.values())
    for child in emission.children:
        handlers.get(child.caused_in or "", item).children.append(_emission_item(child, now))
    return item


def _handler_item(emission: EmissionRecord, report: HandlerReport) -> TimelineItem:
    """Returns the item of a handler that ran inline, was skipped, or was queued without a row."""
    state, took = report["outcome"], report.get("took")
    began = emission.at + timedelta(seconds=report.get("at", 0))
    item = TimelineItem(title=f"{'queue ' if 'delivery' in report else 'inline'} {report['handler']}", state=state)
    notes = [report["why"]] if "why" in report else []
    if took is not None:
        notes.insert(0, f"took {_format_seconds(took)}")
        ended = began + timedelta(seconds=took)
        item.spans.append(TimeSpan(kind="inline", state=state, began=began, ended=ended, label=report["handler"]))
    if "id" in report:
        fate = "rolled back" if state == "dropped" else "left to the broker"
        notes.append(f"{report['delivery']}, {fate}; task {report['id']}")
    item.details = ", ".join(notes)
    return item


def _delivery_item(emission: EmissionRecord, entry: DeliveryRecord, now: datetime) -> TimelineItem:
    """Returns the item of a handler with a delivery in the outbox."""
    details = " → ".join(f"{step} {_format_offset(emission.at, step.at)}" for step in fold_failed_runs(steps_of(entry)))
    if entry.state == "published":
        details += ", left to the broker"
    if entry.error and entry.state != "done":
        details += f": {exception_line(entry.error)}"
    return TimelineItem(
        title=f"queue  {entry.handler}", state=entry.state, details=details, spans=list(_delivery_spans(entry, now))
    )


def _delivery_spans(entry: DeliveryRecord, now: datetime) -> Iterator[TimeSpan]:
    for run in entry.history:
        if run.started is not None:
            label = f"run {run.run}: {run.why}"
            yield TimeSpan(kind="run", state=run.outcome, began=run.started, ended=run.ended, label=label)
    if entry.published is not None:
        until = entry.started or entry.closed or now
        yield TimeSpan(kind="wait", state="queued", began=entry.published, ended=until, label="in the queue")
    last_start = last_run_start(entry)
    if last_start is not None and entry.state not in ("waiting", "queued"):
        ended = entry.closed or now
        yield TimeSpan(kind="run", state=entry.state, began=last_start, ended=ended, label=f"run {entry.attempts}")


def _format_offset(begin: datetime, moment: datetime) -> str:
    return f"{'+' if moment >= begin else '-'}{_format_seconds(abs((moment - begin).total_seconds()))}"


def _format_seconds(seconds: float) -> str:
    if seconds < 0.9995:  # from 0.9995 on, three digits would be 1e+03 ms
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else render.format_duration(timedelta(seconds=seconds))
