"""Timeline of emissions: the steps of each delivery, and a tree of items with spans of time."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpan:
    """A time in which something went on.

    Attributes:
        kind: `inline`, `wait` in the queue, or `run` in a worker.
        state: how it ended.
    """

    kind: str
    state: str
    began: datetime
    ended: datetime
    what: str


@dataclass(slots=True, kw_only=True)
class TimelineItem:
    """An emission, or a handler of one.

    Attributes:
        state: of a handler; empty for an emission.
        note: what there is to say of it besides.
        children: handlers of an emission, or emissions of a handler.
    """

    title: str
    state: str = ""
    note: str = ""
    spans: list[TimeSpan] = field(default_factory=list)
    children: list[TimelineItem] = field(default_factory=list)


def timeline_items(told: Iterable[EmissionRecord], now: datetime) -> list[TimelineItem]:
    """The items of emissions; what goes on still does so until `now`."""
    return [_root_item(each, now) for each in told]


def as_text(found: Iterable[TimelineItem]) -> str:
    """A tree of lines for each."""
    return "\n\n".join("\n".join([_item_line(item), *_tree_lines(item.children, "")]) for item in found)


def _tree_lines(below: Sequence[TimelineItem], indent: str) -> Iterator[str]:
    for item in below:
        last = item is below[-1]
        yield f"{indent}{'└─ ' if last else '├─ '}{_item_line(item)}"
        yield from _tree_lines(item.children, indent + ("   " if last else "│  "))


def _item_line(item: TimelineItem) -> str:
    parts = (escape_text(item.title), render.coloured(item.state), escape_text(item.note))
    return render.COLUMN_GAP.join(part for part in parts if part)


def _root_item(told: EmissionRecord, now: datetime) -> TimelineItem:
    """An emission that is below none that is shown with it, and says below which it was made."""
    item = _emission_item(told, now)
    if told.parent:
        item.note += f"{render.COLUMN_GAP}below {told.parent}"
    return item


def _emission_item(told: EmissionRecord, now: datetime) -> TimelineItem:
    item = TimelineItem(title=f"{told.event or 'a call of the task'} by {told.sender}")
    facts = [f"{told.at:%Y-%m-%d} {format_clock(told.at)} UTC", told.process, told.id]
    fate = [*([f"raised {told.error}"] if told.error else []), *(["rolled back"] if told.rolled_back else [])]
    item.note = render.COLUMN_GAP.join([*filter(None, facts), *fate])
    if told.took is not None:
        ended = told.at + timedelta(seconds=told.took)
        item.spans.append(TimeSpan(kind="inline", state="", began=told.at, ended=ended, what="inline handlers"))
    handlers = {turn["handler"]: _handler_item(told, turn) for turn in told.turns}
    handlers |= {entry.handler: _delivery_item(told, entry, now) for entry in told.deliveries}
    item.children = list(handlers.values())
    for child in told.children:
        handlers.get(child.caused_in or "", item).children.append(_emission_item(child, now))
    return item


def _handler_item(told: EmissionRecord, turn: HandlerReport) -> TimelineItem:
    """A handler that ran inline or was skipped, or was queued without a row."""
    state, took = turn["outcome"], turn.get("took")
    began = told.at + timedelta(seconds=turn.get("at", 0))
    item = TimelineItem(title=f"{'queue ' if 'delivery' in turn else 'inline'} {turn['handler']}", state=state)
    notes = [turn["why"]] if "why" in turn else []
    if took is not None:
        notes.insert(0, f"took {_format_seconds(took)}")
        ended = began + timedelta(seconds=took)
        item.spans.append(TimeSpan(kind="inline", state=state, began=began, ended=ended, what=turn["handler"]))
    if "id" in turn:
        fate = "rolled back" if state == "dropped" else "left to the broker"
        notes.append(f"{turn['delivery']}, {fate}; task {turn['id']}")
    item.note = ", ".join(notes)
    return item


def _delivery_item(told: EmissionRecord, entry: DeliveryRecord, now: datetime) -> TimelineItem:
    """A handler with a delivery in the outbox."""
    note = " → ".join(f"{step} {_format_offset(told.at, step.at)}" for step in fold_failed_runs(steps_of(entry)))
    if entry.state == "published":
        note += ", left to the broker"
    if entry.error and entry.state != "done":
        note += f": {exception_line(entry.error)}"
    return TimelineItem(
        title=f"queue  {entry.handler}", state=entry.state, note=note, spans=list(_delivery_spans(entry, now))
    )


def _delivery_spans(entry: DeliveryRecord, now: datetime) -> Iterator[TimeSpan]:
    for run in entry.history:
        if run.started is not None:
            what = f"run {run.run}: {run.why}"
            yield TimeSpan(kind="run", state=run.outcome, began=run.started, ended=run.ended, what=what)
    if entry.published is not None:
        until = entry.started or entry.closed or now
        yield TimeSpan(kind="wait", state="queued", began=entry.published, ended=until, what="in the queue")
    last = last_run_start(entry)
    if last is not None and entry.state not in ("waiting", "queued"):
        ended = entry.closed or now
        yield TimeSpan(kind="run", state=entry.state, began=last, ended=ended, what=f"run {entry.attempts}")


def _format_offset(begin: datetime, moment: datetime) -> str:
    return f"{'+' if moment >= begin else '-'}{_format_seconds(abs((moment - begin).total_seconds()))}"


def _format_seconds(seconds: float) -> str:
    if seconds < 0.9995:  # of which three digits are not 1000
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else render.format_duration(timedelta(seconds=seconds))


@dataclass(frozen=True, slots=True)
class Step:
    """What a delivery came into.

    Attributes:
        state: one of a delivery's, `retried` or `replayed`.
        run: number of the run that began or ended; 0 for none.
        first_run: number of the first of several runs that ended alike, of which it is the last; 0 for none.
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
    """The steps of a delivery, the earliest first."""
    steps = sorted(_recorded_steps(entry), key=lambda step: step.at)
    if entry.state == "waiting":
        since = steps[-1].at if steps else entry.emitted_at
        until = f"until {entry.due:%H:%M:%S}" if entry.due is not None else ""
        steps.append(Step(since, "waiting", why=until))
    return steps


def fold_failed_runs(steps: Iterable[Step]) -> list[Step]:
    """The same, with runs that failed alike one after the other as one step, when the last of them did."""
    found: list[Step] = []
    for step in steps:
        before = -2 if found and found[-1].state == "running" else -1
        earlier = found[before] if len(found) >= -before else None
        if earlier is not None and _is_same_failure(step, earlier):
            found[before:] = [replace(step, first_run=earlier.first_run or earlier.run)]
        else:
            found.append(step)
    return found


def _is_same_failure(step: Step, earlier: Step) -> bool:
    """Whether both are runs that failed with one error, but for its numbers."""
    return step.state == earlier.state == "retried" and _without_numbers(step.why) == _without_numbers(earlier.why)


def _without_numbers(why: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "#", why)


def last_run_start(entry: DeliveryRecord) -> datetime | None:
    """When the run began that goes on, or has closed the delivery; None when the last one is in the history."""
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
