"""How deliveries are shown: a table, or all about each, for people; JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nitro.infrastructure.outbox.registry import Entry

HEADINGS = ("ID", "STATE", "HANDLER", "EVENT", "SENDER", "ATTEMPTS", "WHEN", "ERROR")
GAP = "  "
UNITS = (("d", 86400), ("h", 3600), ("m", 60))


def as_json(entries: Iterable[Entry]) -> str:
    """An array of objects with all that is known; times in ISO 8601, UTC."""
    return json.dumps([asdict(entry) for entry in entries], default=datetime.isoformat, indent=2)


def as_table(entries: Iterable[Entry]) -> str:
    """A line for each under its headings, the last line of its error at the end."""
    return table(HEADINGS, (_cells(entry) for entry in entries))


def table(headings: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A line for each row under the headings; no text in it can break a line or steer a terminal."""
    rows = [headings, *([plain(cell) for cell in row] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, widths) for row in rows)


def in_full(entry: Entry) -> str:
    """A line for each fact that there is, then the error with its traceback."""
    facts = {name: value for name, value in asdict(entry).items() if value is not None}
    error = facts.pop("error", "").splitlines()
    width = max(map(len, facts))
    lines = [f"{name:<{width}}{GAP}{plain(_text(value))}" for name, value in facts.items()]
    return "\n".join([*lines, *(["error"] if error else []), *(GAP + plain(line) for line in error)])


def deliveries(count: int) -> str:
    """The number with its noun."""
    return "1 delivery" if count == 1 else f"{count} deliveries"


def by_state(counts: dict[str, int]) -> str:
    """Numbers of deliveries in words, such as `2 dead, 1 done`."""
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _cells(entry: Entry) -> tuple[str, ...]:
    facts = (entry.id, entry.state, entry.handler, entry.event or "-", entry.sender, str(entry.attempts))
    error = (entry.error or "").strip().splitlines()
    return (*facts, _when(entry), error[-1] if error else "")


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _when(entry: Entry) -> str:
    """In how long a waiting one is due; how long ago another came into its state."""
    now = datetime.now(UTC)
    if entry.state == "waiting":
        return f"in {_span(entry.due - now)}" if entry.due is not None and entry.due > now else "due"
    since = {"queued": entry.published, "running": entry.started}.get(entry.state, entry.closed)
    return "-" if since is None else f"{_span(now - since)} ago"


def _span(time: timedelta) -> str:
    """A length of time in the largest unit that it fills."""
    seconds = max(0, int(time.total_seconds()))
    return next((f"{seconds // size}{unit}" for unit, size in UNITS if seconds >= size), f"{seconds}s")


def _text(value: Any) -> str:
    return value.isoformat(" ", "seconds") if isinstance(value, datetime) else str(value)


def plain(text: str) -> str:
    """Text that cannot break a line or steer a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]
