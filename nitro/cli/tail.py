"""`nitro tail`: emissions, inline handlers and deliveries as they happen, read from the database that all share."""

from __future__ import annotations

import json as json_
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from queue import Empty
from typing import TYPE_CHECKING

import click

from nitro.cli import listing
from nitro.cli.moments import Moment, clock
from nitro.cli.project import load_what_can_be
from nitro.cli.steps import steps_of
from nitro.cli.stopping import Signals, signals
from nitro.infrastructure.logs import plain, said

if TYPE_CHECKING:
    from nitro.infrastructure.outbox.lineage import Told
    from nitro.infrastructure.outbox.registry import Entry

EVERY = 0.5
"""Seconds between two looks."""
LATE = timedelta(seconds=60)
"""How long after it began an emission may be committed, and still be seen."""
MOST = 2000
"""Emissions that are looked at at once, the latest, and as many earlier ones with open deliveries."""
STATES = (
    *("emitted", "done", "started", "failed", "raised", "cancelled", "skipped"),
    *("waiting", "queued", "running", "retried", "dead", "replayed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Something that happened.

    Attributes:
        state: `emitted`, the outcome of an inline handler, or what a delivery came into.
        handler: None of an emission.
    """

    at: datetime
    state: str
    event: str | None
    sender: str
    handler: str | None
    emission: str
    note: str

    def __str__(self) -> str:
        facts = (self.emission, self.event or "-", self.sender, self.handler or "", self.note)
        return listing.GAP.join([clock(self.at), listing.coloured(self.state, 9), *map(plain, filter(None, facts))])


class Tail:
    """What has happened since the last look.

    Args:
        since: begins with what was emitted since then, and what was replayed.

    Attributes:
        cut: whether there were more emissions than were looked at.
    """

    def __init__(self, since: datetime) -> None:
        self.cut = False
        self._begin = self._since = since
        self._open: set[str] = set()
        self._shown: dict[str, set[Hashable]] = {}

    def look(self) -> list[Line]:
        """The lines that have not been there, the earliest first."""
        from nitro.infrastructure.outbox import lineage

        begun = datetime.now(UTC)
        found = lineage.emitted(self._since, MOST + 1)
        again = lineage.replayed(self._since, MOST)
        self.cut = len(found) > MOST
        told = found[-MOST:]
        told += lineage.named((self._open | again) - {each.id for each in told})
        self._since = max(self._since, begun - LATE)
        goes_on = sorted(each.id for each in told if any(entry.closed is None for entry in each.deliveries))
        self._open = set(goes_on[-MOST:])
        self._shown = {each.id: self._shown.get(each.id, set()) for each in told}
        return sorted((line for each in told for line in self._fresh(each)), key=lambda line: line.at)

    def _fresh(self, told: Told) -> Iterator[Line]:
        from nitro.infrastructure.outbox.tables import first_id

        shown, is_new = self._shown[told.id], told.id >= first_id(self._begin)
        for line in _lines(told):
            key = _key(line)
            if key not in shown:
                shown.add(key)
                if is_new or line.at >= self._begin:
                    yield line


def _key(line: Line) -> Hashable:
    """What tells a line from others of its emission: not the time of a run, which its history has in other digits."""
    return (line.handler, line.state, line.note) if line.state in ("emitted", "running", "retried") else line


@click.command("tail")
@click.option("--event", metavar="NAME", help="Only of this event.")
@click.option("--handler", metavar="NAME", help="Only of this handler.")
@click.option("--sender", metavar="Class:id", help="Only by this entity.")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only this; may be given again.")
@click.option("--since", type=Moment(), default="0s", help="Begin with what was emitted since then, or replayed.")
@click.option("--once", is_flag=True, help="End when all is shown that has happened.")
@click.option("--json", "json", is_flag=True, help="For scripts: an object a line.")
def command(
    event: str | None,
    handler: str | None,
    sender: str | None,
    states: Sequence[str],
    since: datetime,
    once: bool,
    json: bool,
) -> None:
    """Show emissions, inline handlers and deliveries as they happen, until SIGINT or SIGTERM.

    Shown is what is recorded: emissions that have queued tracked deliveries; with NITRO_JOURNAL=on all.

    \b
    Example: celery -A tasks nitro tail --event order-placed --state dead --state retried
    """
    from nitro.infrastructure.outbox.versions import ensure_current

    load_what_can_be()
    ensure_current()
    wanted = {"event": event, "handler": handler, "sender": sender}
    tail, warned = Tail(since), False
    told = signals()
    while True:
        for line in tail.look():
            if _is_wanted(line, wanted, states):
                click.echo(json_.dumps(asdict(line), default=datetime.isoformat) if json else line)
        if tail.cut and not warned:
            click.echo(f"only the latest {MOST} emissions are shown", err=True)
            warned = True
        if once or _came(told):
            return


def _came(told: Signals) -> bool:
    """Whether a signal comes before it is time to look again."""
    try:
        told.get(timeout=EVERY)
    except Empty:
        return False
    return True


def _is_wanted(line: Line, wanted: dict[str, str | None], states: Sequence[str]) -> bool:
    facts = {"event": line.event, "handler": line.handler, "sender": line.sender}
    if wanted["sender"] is not None and line.sender.startswith(f"{wanted['sender']} "):
        facts["sender"] = wanted["sender"]  # with what `__nitro_show__` of its class adds
    fits = all(value is None or facts[name] == value for name, value in wanted.items())
    return fits and (not states or line.state in states)


def _lines(told: Told) -> Iterator[Line]:
    below = f"below {told.parent}" if told.parent else ""
    yield _line(told, told.at, "emitted", None, f"raised {told.error}" if told.error else below)
    for turn in told.turns:
        at = told.at + timedelta(seconds=turn.get("at", 0))
        yield _line(told, at, turn["outcome"], turn["handler"], turn.get("why") or turn.get("delivery") or "")
    for entry in told.deliveries:
        yield from _delivery(told, entry)


def _delivery(told: Told, entry: Entry) -> Iterator[Line]:
    for step in steps_of(entry):
        why = step.why or (said(entry.error or "") if step.state == "dead" else "")
        run = f"run {step.run}" if step.run else ""
        yield _line(told, step.at, step.state, entry.handler, ": ".join(filter(None, (run, why))))


def _line(told: Told, at: datetime, state: str, handler: str | None, note: str) -> Line:
    return Line(at=at, state=state, event=told.event, sender=told.sender, handler=handler, emission=told.id, note=note)
