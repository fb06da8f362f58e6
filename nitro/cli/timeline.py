"""Timeline: what became of emissions, as a tree of items with spans of time, to be drawn as text or as a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nitro.cli import listing
from nitro.cli.moments import clock
from nitro.cli.steps import folded, last_run_of, steps_of
from nitro.infrastructure.logs import plain, said

if TYPE_CHECKING:
    from nitro.infrastructure.offload.story import Turn
    from nitro.infrastructure.outbox.lineage import Told
    from nitro.infrastructure.outbox.registry import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
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
class Item:
    """An emission, or a handler of one.

    Attributes:
        state: of a handler; empty for an emission.
        note: what there is to say of it besides.
        below: handlers of an emission, or emissions of a handler.
    """

    title: str
    state: str = ""
    note: str = ""
    spans: list[Span] = field(default_factory=list)
    below: list[Item] = field(default_factory=list)


def items(told: Iterable[Told], now: datetime) -> list[Item]:
    """The items of emissions; what goes on still does so until `now`."""
    return [_top(each, now) for each in told]


def as_text(found: Iterable[Item]) -> str:
    """A tree of lines for each."""
    return "\n\n".join("\n".join([_line(item), *_branches(item.below, "")]) for item in found)


def _branches(below: Sequence[Item], indent: str) -> Iterator[str]:
    for item in below:
        last = item is below[-1]
        yield f"{indent}{'└─ ' if last else '├─ '}{_line(item)}"
        yield from _branches(item.below, indent + ("   " if last else "│  "))


def _line(item: Item) -> str:
    parts = (plain(item.title), listing.coloured(item.state), plain(item.note))
    return listing.GAP.join(part for part in parts if part)


def _top(told: Told, now: datetime) -> Item:
    """An emission that is below none that is shown with it, and says below which it was made."""
    item = _emission(told, now)
    if told.parent:
        item.note += f"{listing.GAP}below {told.parent}"
    return item


def _emission(told: Told, now: datetime) -> Item:
    item = Item(title=f"{told.event or 'a call of the task'} by {told.sender}")
    facts = [f"{told.at:%Y-%m-%d} {clock(told.at)} UTC", told.process, told.id]
    fate = [*([f"raised {told.error}"] if told.error else []), *(["rolled back"] if told.rolled_back else [])]
    item.note = listing.GAP.join([*filter(None, facts), *fate])
    if told.took is not None:
        ended = told.at + timedelta(seconds=told.took)
        item.spans.append(Span(kind="inline", state="", began=told.at, ended=ended, what="inline handlers"))
    handlers = {turn["handler"]: _turn(told, turn) for turn in told.turns}
    handlers |= {entry.handler: _delivery(told, entry, now) for entry in told.deliveries}
    item.below = list(handlers.values())
    for child in told.children:
        handlers.get(child.caused_in or "", item).below.append(_emission(child, now))
    return item


def _turn(told: Told, turn: Turn) -> Item:
    """A handler that ran inline or was skipped, or was queued without a row."""
    state, took = turn["outcome"], turn.get("took")
    began = told.at + timedelta(seconds=turn.get("at", 0))
    item = Item(title=f"{'queue ' if 'delivery' in turn else 'inline'} {turn['handler']}", state=state)
    notes = [turn["why"]] if "why" in turn else []
    if took is not None:
        notes.insert(0, f"took {_length(took)}")
        ended = began + timedelta(seconds=took)
        item.spans.append(Span(kind="inline", state=state, began=began, ended=ended, what=turn["handler"]))
    if "id" in turn:
        fate = "rolled back" if state == "dropped" else "left to the broker"
        notes.append(f"{turn['delivery']}, {fate}; task {turn['id']}")
    item.note = ", ".join(notes)
    return item


def _delivery(told: Told, entry: Entry, now: datetime) -> Item:
    """A handler with a delivery in the outbox."""
    note = " → ".join(f"{step} {_after(told.at, step.at)}" for step in folded(steps_of(entry)))
    if entry.state == "published":
        note += ", left to the broker"
    if entry.error and entry.state != "done":
        note += f": {said(entry.error)}"
    return Item(title=f"queue  {entry.handler}", state=entry.state, note=note, spans=list(_spans(entry, now)))


def _spans(entry: Entry, now: datetime) -> Iterator[Span]:
    for run in entry.history:
        if run.started is not None:
            what = f"run {run.run}: {run.why}"
            yield Span(kind="run", state=run.outcome, began=run.started, ended=run.ended, what=what)
    if entry.published is not None:
        until = entry.started or entry.closed or now
        yield Span(kind="wait", state="queued", began=entry.published, ended=until, what="in the queue")
    last = last_run_of(entry)
    if last is not None and entry.state not in ("waiting", "queued"):
        ended = entry.closed or now
        yield Span(kind="run", state=entry.state, began=last, ended=ended, what=f"run {entry.attempts}")


def _after(begin: datetime, moment: datetime) -> str:
    return f"{'+' if moment >= begin else '-'}{_length(abs((moment - begin).total_seconds()))}"


def _length(seconds: float) -> str:
    if seconds < 0.9995:  # of which three digits are not 1000
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else listing.span(timedelta(seconds=seconds))
