"""`nitro tail`: emissions, inline handlers and deliveries as they happen, read from the shared database."""

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
"""Seconds between two reads of the database."""
PAUSE_FACTOR = 4
"""The pause after a read lasts at least this many times the read, so that a tail does not load the database."""
LATE_COMMIT_WINDOW = timedelta(seconds=60)
"""Maximum time between an emission and its commit for which it is still shown."""
CLOCK_TOLERANCE = timedelta(seconds=1)
"""Difference from which the clocks of the database and of this machine are treated as different."""
MAX_ROWS = 50_000
"""Maximum number of changed rows of a read; the latest are kept."""
READ_BATCH = 500
"""Number of emissions in one query."""
MAX_REMEMBERED_EMISSIONS = 100_000
"""Maximum number of emissions whose shown lines are remembered."""
STATES = (
    *("emitted", "done", "started", "failed", "raised", "cancelled", "skipped", "dropped"),
    *("waiting", "queued", "published", "running", "retried", "dead", "replayed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TailLine:
    """A line of the tail: an emission, the outcome of an inline handler, or a step of a delivery.

    Attributes:
        state: `emitted`, the outcome of an inline handler, or the new state of a delivery.
        handler: the name of the handler; None for an emission.
    """

    at: datetime
    state: str
    event: str | None
    sender: str
    handler: str | None
    emission: str
    note: str

    def __str__(self) -> str:
        cells = (self.emission, self.event or "-", self.sender, self.handler or "", self.note)
        return render.COLUMN_GAP.join(
            [format_clock(self.at), render.coloured(self.state, 9), *map(escape_text, filter(None, cells))]
        )


class Tail:
    """A reader of new lines.

    Args:
        since: time of the first line, by the clock of this machine.
        line_filter: selects the lines; without it all are shown.

    Attributes:
        is_truncated: whether the last read had more than `MAX_ROWS` changed rows.
    """

    def __init__(self, since: datetime, line_filter: HistoryFilter | None = None) -> None:
        from nitro.infrastructure.outbox.history import HistoryFilter, database_time

        clock_difference = database_time() - datetime.now(UTC)
        self.is_truncated = False
        self._begin = self._since = since + clock_difference if abs(clock_difference) > CLOCK_TOLERANCE else since
        self._filter = HistoryFilter() if line_filter is None else line_filter
        self._seen_keys: set[Hashable] = set()
        self._shown_keys: dict[str, set[Hashable]] = {}

    def new_lines(self) -> list[TailLine]:
        """Returns the lines that no earlier call returned, the earliest first."""
        from nitro.infrastructure.outbox import history

        read_at = history.database_time()
        keys, self.is_truncated = history.changes_since(self._since, self._filter, MAX_ROWS)
        changed = sorted({key[0] for key in keys if key not in self._seen_keys})
        lines = [line for emission in _read_emissions(changed) for line in self._new_lines_of(emission)]
        self._seen_keys = set(keys)
        self._since = max(self._since, read_at - LATE_COMMIT_WINDOW)
        for oldest in list(self._shown_keys)[: max(0, len(self._shown_keys) - MAX_REMEMBERED_EMISSIONS)]:
            del self._shown_keys[oldest]
        return sorted(lines, key=lambda line: line.at)

    def _new_lines_of(self, emission: EmissionRecord) -> Iterator[TailLine]:
        from nitro.infrastructure.outbox.schema import min_id_at

        shown_keys = self._shown_keys[emission.id] = self._shown_keys.pop(emission.id, set())
        is_new = emission.id >= min_id_at(self._begin)
        for line in _emission_lines(emission):
            key = _line_key(line)
            if key not in shown_keys and _is_wanted(line, self._filter):
                shown_keys.add(key)
                if is_new or line.at >= self._begin:
                    yield line


def _read_emissions(ids: Sequence[str]) -> Iterator[EmissionRecord]:
    """Yields the emissions with these ids, read in batches."""
    from nitro.infrastructure.outbox import history

    for start in range(0, len(ids), READ_BATCH):
        yield from history.records_by_ids(ids[start : start + READ_BATCH])


def _line_key(line: TailLine) -> Hashable:
    """Returns the identity of a line within its emission.

    The time of a run is not part of it: the row and the history round it differently.
    """
    return (line.handler, line.state, line.note) if line.state in ("emitted", "running", "retried") else line


@click.command("tail")
@click.option("--event", metavar="NAME", help="Show only this event.")
@click.option("--handler", metavar="NAME", help="Show only this handler.")
@click.option("--sender", metavar="Class:id", help="Show only emissions by this entity.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(STATES),
    help="Show only this state; can be given several times.",
)
@click.option("--since", type=Moment(), default="0s", help="Begin with lines since this time.")
@click.option("--once", is_flag=True, help="Stop after the lines that are there now.")
@click.option("--json", "json", is_flag=True, help="Print a JSON object for each line, for scripts.")
def command(
    event: str | None,
    handler: str | None,
    sender: str | None,
    states: Sequence[str],
    since: datetime,
    once: bool,
    json: bool,
) -> None:
    """Shows emissions, inline handlers and deliveries as they happen, until SIGINT or SIGTERM.

    Only recorded emissions are shown: those with tracked deliveries, or all with NITRO_JOURNAL=on.

    \b
    Example: celery -A tasks nitro tail --event order-placed --state dead --state retried
    """
    from nitro.infrastructure.outbox.history import HistoryFilter
    from nitro.infrastructure.outbox.versions import ensure_current

    load_handlers_or_warn()
    ensure_current()
    project.warn_unknown_names(handler=handler, event=event)
    line_filter = HistoryFilter(event=event, handler=handler, sender=sender, states=frozenset(states))
    signals = stop_signals()
    tail, was_cut = Tail(since, line_filter), False
    while True:
        began = monotonic()
        for line in tail.new_lines():
            click.echo(json_.dumps(asdict(line), default=datetime.isoformat) if json else line)
        if tail.is_truncated and not was_cut:
            click.echo(f"only the latest {MAX_ROWS} are shown; give a later --since, or a filter", err=True)
        was_cut = tail.is_truncated
        if once or _has_signal_come(signals, max(POLL_SECONDS, PAUSE_FACTOR * (monotonic() - began))):
            return


def _has_signal_come(signals: SignalQueue, seconds: float) -> bool:
    """Whether a signal comes within these seconds."""
    try:
        signals.get(timeout=seconds)
    except Empty:
        return False
    return True


def _is_wanted(line: TailLine, line_filter: HistoryFilter) -> bool:
    # A sender may be followed by a space and the text of `__nitro_show__`.
    if (
        line_filter.sender is not None
        and line.sender != line_filter.sender
        and not line.sender.startswith(f"{line_filter.sender} ")
    ):
        return False
    conditions = ((line_filter.event, line.event), (line_filter.handler, line.handler))
    matches = all(value is None or value == actual for value, actual in conditions)
    return matches and (not line_filter.states or line.state in line_filter.states)


def _emission_lines(emission: EmissionRecord) -> Iterator[TailLine]:
    parent_note = f"below {emission.parent}" if emission.parent else ""
    yield _make_line(
        emission, emission.at, "emitted", None, f"raised {emission.error}" if emission.error else parent_note
    )
    for report in emission.turns:
        at = emission.at + timedelta(seconds=report.get("at", 0))
        yield _make_line(
            emission, at, report["outcome"], report["handler"], report.get("why") or report.get("delivery") or ""
        )
    for entry in emission.deliveries:
        yield from _delivery_lines(emission, entry)


def _delivery_lines(emission: EmissionRecord, entry: DeliveryRecord) -> Iterator[TailLine]:
    for step in steps_of(entry):
        reason = step.why or (exception_line(entry.error or "") if step.state == "dead" else "")
        run = f"run {step.run}" if step.run else ""
        yield _make_line(emission, step.at, step.state, entry.handler, ": ".join(filter(None, (run, reason))))


def _make_line(emission: EmissionRecord, at: datetime, state: str, handler: str | None, note: str) -> TailLine:
    return TailLine(
        at=at,
        state=state,
        event=emission.event,
        sender=emission.sender,
        handler=handler,
        emission=emission.id,
        note=note,
    )
