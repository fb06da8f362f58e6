"""How deliveries are shown: a table, or all about each, for people; JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from nitro.infrastructure.logs import plain, said

if TYPE_CHECKING:
    from nitro.infrastructure.outbox.registry import Entry

HEADINGS = ("ID", "STATE", "HANDLER", "EVENT", "SENDER", "ATTEMPTS", "WHEN", "ERROR")
GAP = "  "
UNITS = (("d", 86400), ("h", 3600), ("m", 60))
COLOURS = {
    **dict.fromkeys(("done", "fine"), "green"),
    **dict.fromkeys(
        ("waiting", "queued", "running", "published", "started", "retried", "replayed", "warning"), "yellow"
    ),
    **dict.fromkeys(("dead", "failed", "raised", "wrong"), "red"),
    **dict.fromkeys(("cancelled", "skipped", "dropped"), "blue"),
}


def as_json(entries: Iterable[Entry]) -> str:
    """An array of objects with all that is known; times in ISO 8601, UTC."""
    return json.dumps([asdict(entry) for entry in entries], default=datetime.isoformat, indent=2)


def in_full_json(entries: Iterable[Entry], payloads: Mapping[str, Any]) -> str:
    """The same with the payload of each, by its id."""
    shown = [{**asdict(entry), "payload": payloads.get(entry.id)} for entry in entries]
    return json.dumps(shown, default=datetime.isoformat, indent=2)


def as_table(entries: Iterable[Entry]) -> str:
    """A line for each under its headings, the last line of its error at the end."""
    return table(HEADINGS, (_cells(entry) for entry in entries))


def table(headings: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A line for each row under the headings; no text in it can break a line or steer a terminal."""
    rows = [headings, *([plain(cell) for cell in row] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, widths) for row in rows)


def coloured(word: str, width: int = 0) -> str:
    """A word, in the colour of the state that it is, if it is one; `click.echo` shows none but on a terminal."""
    text = word.ljust(width)
    return click.style(text, fg=COLOURS[word]) if word in COLOURS else text


def in_full(entries: Iterable[Entry], payloads: Mapping[str, Any]) -> str:
    """Of each a line for each fact that there is, then its runs, its error with the traceback, and its payload."""
    return "\n\n".join(_in_full(entry, payloads.get(entry.id)) for entry in entries)


def _in_full(entry: Entry, payload: Any) -> str:
    facts = {name: value for name, value in asdict(entry).items() if value not in (None, ())}
    error = facts.pop("error", "").splitlines()
    runs = [_run(**run) for run in facts.pop("history", ())]
    width = max(map(len, facts))
    lines = [f"{name:<{width}}{GAP}{plain(_text(value))}" for name, value in facts.items()]
    readable = [] if payload is None else json.dumps(payload, indent=2, ensure_ascii=False).splitlines()
    more = {"history": runs, "error": error, "payload": readable}
    for name, told in more.items():
        lines += [name, *(GAP + plain(line) for line in told)] if told else []
    return "\n".join(lines)


def _run(run: int, ended: datetime, why: str, outcome: str, **_facts: Any) -> str:
    return f"run {run}, {'ended' if outcome == 'retried' else outcome} {_text(ended)}: {why}"


def progress(label: str, length: int) -> Any:
    """A bar on stderr, where that is a terminal."""
    hidden = not sys.stderr.isatty()
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=hidden)


def deliveries(count: int) -> str:
    """The number with its noun."""
    return "1 delivery" if count == 1 else f"{count} deliveries"


def by_state(counts: dict[str, int]) -> str:
    """Numbers of deliveries in words, such as `2 dead, 1 done`."""
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _cells(entry: Entry) -> tuple[str, ...]:
    facts = (entry.id, entry.state, entry.handler, entry.event or "-", entry.sender, str(entry.attempts))
    return (*facts, _when(entry), said(entry.error or ""))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = list(zip(row, widths, strict=True))
    while len(cells) > 1 and not cells[-1][0]:
        cells.pop()
    (last, _), before = cells[-1], cells[:-1]
    return GAP.join([*(coloured(cell, width) for cell, width in before), coloured(last)])


def _when(entry: Entry) -> str:
    """In how long a waiting one is due; how long ago another came into its state."""
    now = datetime.now(UTC)
    if entry.state == "waiting":
        return f"in {span(entry.due - now)}" if entry.due is not None and entry.due > now else "due"
    since = {"queued": entry.published, "running": entry.started}.get(entry.state, entry.closed)
    return "-" if since is None else f"{span(now - since)} ago"


def span(time: timedelta) -> str:
    """A length of time in the largest unit that it fills."""
    seconds = max(0, int(time.total_seconds()))
    return next((f"{seconds // size}{unit}" for unit, size in UNITS if seconds >= size), f"{seconds}s")


def _text(value: Any) -> str:
    return value.isoformat(" ", "seconds") if isinstance(value, datetime) else str(value)
