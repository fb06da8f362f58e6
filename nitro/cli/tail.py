"""`nitro tail`: emissions, inline handlers and deliveries as they happen, read from the database that all share."""

from __future__ import annotations

import json as json_
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING

import click

from nitro.cli import project, render
from nitro.cli.project import load_handlers_or_warn
from nitro.cli.relay import SignalQueue, stop_signals
from nitro.cli.timeline import steps_of
from nitro.cli.times import Moment, format_clock
from nitro.infrastructure.logs import escape_text, exception_line

if TYPE_CHECKING:
    from nitro.infrastructure.outbox.history import EmissionRecord, HistoryFilter
    from nitro.infrastructure.outbox.operations import DeliveryRecord

POLL_SECONDS = 0.5
"""Seconds between two looks."""
PAUSE_FACTOR = 4
"""Times longer than a look takes, at least, is the pause after it: who follows leaves the database to others."""
LATE_COMMIT_WINDOW = timedelta(seconds=60)
"""How long after it happened something may be committed, and still be seen."""
CLOCK_TOLERANCE = timedelta(seconds=1)
"""From how much on the clock of the database is taken for another one than that of this machine."""
MAX_ROWS = 50_000
"""Emissions and deliveries that are looked at, the latest."""
READ_BATCH = 500
"""Emissions that are read at a time."""
MAX_REMEMBERED_EMISSIONS = 100_000
"""Emissions of which it is known what has been shown."""
STATES = (
    *("emitted", "done", "started", "failed", "raised", "cancelled", "skipped", "dropped"),
    *("waiting", "queued", "published", "running", "retried", "dead", "replayed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TailLine:
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
        return render.COLUMN_GAP.join(
            [format_clock(self.at), render.coloured(self.state, 9), *map(escape_text, filter(None, facts))]
        )


class Tail:
    """What has happened since the last look.

    Args:
        since: begins with what has happened since then, by the clock of this machine.
        wanted: what is shown; all, unless given.

    Attributes:
        is_truncated: whether there was more than was looked at.
    """

    def __init__(self, since: datetime, wanted: HistoryFilter | None = None) -> None:
        from nitro.infrastructure.outbox.history import HistoryFilter, database_time

        apart = database_time() - datetime.now(UTC)
        self.is_truncated = False
        self._begin = self._since = since + apart if abs(apart) > CLOCK_TOLERANCE else since
        self._wanted = HistoryFilter() if wanted is None else wanted
        self._seen: set[Hashable] = set()
        self._shown: dict[str, set[Hashable]] = {}

    def look(self) -> list[TailLine]:
        """The lines that have not been there, the earliest first."""
        from nitro.infrastructure.outbox import history

        begun = history.database_time()
        keys, self.is_truncated = history.changes_since(self._since, self._wanted, MAX_ROWS)
        changed = sorted({key[0] for key in keys if key not in self._seen})
        lines = [line for told in _read_emissions(changed) for line in self._new_lines(told)]
        self._seen = set(keys)
        self._since = max(self._since, begun - LATE_COMMIT_WINDOW)
        for oldest in list(self._shown)[: max(0, len(self._shown) - MAX_REMEMBERED_EMISSIONS)]:
            del self._shown[oldest]
        return sorted(lines, key=lambda line: line.at)

    def _new_lines(self, told: EmissionRecord) -> Iterator[TailLine]:
        from nitro.infrastructure.outbox.schema import min_id_at

        shown = self._shown[told.id] = self._shown.pop(told.id, set())
        is_new = told.id >= min_id_at(self._begin)
        for line in _emission_lines(told):
            key = _line_key(line)
            if key not in shown and _is_wanted(line, self._wanted):
                shown.add(key)
                if is_new or line.at >= self._begin:
                    yield line


def _read_emissions(emissions: Sequence[str]) -> Iterator[EmissionRecord]:
    """These emissions, some at a time."""
    from nitro.infrastructure.outbox import history

    for first in range(0, len(emissions), READ_BATCH):
        yield from history.records_by_ids(emissions[first : first + READ_BATCH])


def _line_key(line: TailLine) -> Hashable:
    """What tells a line from others of its emission: not the time of a run, which its history has in other digits."""
    return (line.handler, line.state, line.note) if line.state in ("emitted", "running", "retried") else line


@click.command("tail")
@click.option("--event", metavar="NAME", help="Only of this event.")
@click.option("--handler", metavar="NAME", help="Only of this handler.")
@click.option("--sender", metavar="Class:id", help="Only by this entity.")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only this; may be given again.")
@click.option("--since", type=Moment(), default="0s", help="Begin with what has happened since then.")
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
    from nitro.infrastructure.outbox.history import HistoryFilter
    from nitro.infrastructure.outbox.versions import ensure_current

    load_handlers_or_warn()
    ensure_current()
    project.warn_unknown_names(handler=handler, event=event)
    wanted = HistoryFilter(event=event, handler=handler, sender=sender, states=frozenset(states))
    told = stop_signals()
    tail, was_cut = Tail(since, wanted), False
    while True:
        began = monotonic()
        for line in tail.look():
            click.echo(json_.dumps(asdict(line), default=datetime.isoformat) if json else line)
        if tail.is_truncated and not was_cut:
            click.echo(f"only the latest {MAX_ROWS} are shown; give a later --since, or a filter", err=True)
        was_cut = tail.is_truncated
        if once or _has_signal_come(told, max(POLL_SECONDS, PAUSE_FACTOR * (monotonic() - began))):
            return


def _has_signal_come(told: SignalQueue, seconds: float) -> bool:
    """Whether a signal comes before it is time to look again."""
    try:
        told.get(timeout=seconds)
    except Empty:
        return False
    return True


def _is_wanted(line: TailLine, wanted: HistoryFilter) -> bool:
    if wanted.sender is not None and line.sender != wanted.sender and not line.sender.startswith(f"{wanted.sender} "):
        return False  # which `__nitro_show__` of its class adds to
    facts = ((wanted.event, line.event), (wanted.handler, line.handler))
    fits = all(value is None or value == found for value, found in facts)
    return fits and (not wanted.states or line.state in wanted.states)


def _emission_lines(told: EmissionRecord) -> Iterator[TailLine]:
    below = f"below {told.parent}" if told.parent else ""
    yield _make_line(told, told.at, "emitted", None, f"raised {told.error}" if told.error else below)
    for turn in told.turns:
        at = told.at + timedelta(seconds=turn.get("at", 0))
        yield _make_line(told, at, turn["outcome"], turn["handler"], turn.get("why") or turn.get("delivery") or "")
    for entry in told.deliveries:
        yield from _delivery_lines(told, entry)


def _delivery_lines(told: EmissionRecord, entry: DeliveryRecord) -> Iterator[TailLine]:
    for step in steps_of(entry):
        why = step.why or (exception_line(entry.error or "") if step.state == "dead" else "")
        run = f"run {step.run}" if step.run else ""
        yield _make_line(told, step.at, step.state, entry.handler, ": ".join(filter(None, (run, why))))


def _make_line(told: EmissionRecord, at: datetime, state: str, handler: str | None, note: str) -> TailLine:
    return TailLine(
        at=at, state=state, event=told.event, sender=told.sender, handler=handler, emission=told.id, note=note
    )
