"""Output of the commands: tables, details, JSON and masks, on the terminal or in a file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nitro.infrastructure.logs import escape_text, exception_line

if TYPE_CHECKING:
    from nitro.infrastructure.outbox.operations import DeliveryRecord


HEADINGS = ("ID", "STATE", "HANDLER", "EVENT", "SENDER", "ATTEMPTS", "WHEN", "ERROR")
COLUMN_GAP = "  "
UNITS = (("d", 86400), ("h", 3600), ("m", 60))
STATE_COLOURS = {
    **dict.fromkeys(("done", "fine"), "green"),
    **dict.fromkeys(
        ("waiting", "queued", "running", "published", "started", "retried", "replayed", "warning"), "yellow"
    ),
    **dict.fromkeys(("dead", "failed", "raised", "wrong"), "red"),
    **dict.fromkeys(("cancelled", "skipped", "dropped"), "blue"),
}
MASK = "***"
"""The text that replaces a masked value."""
SENSITIVE_NAME = re.compile(
    r"pass(word|phrase|wd|code)?$|^pwd$|secret|token|credential|auth(?!or)|api_?key|private_?key|signature|cookie|session"
    r"|card|cvc|cvv|iban|account_?n|^pin$|ssn|tax_?id|e_?mail|phone|mobile|address|birth",
    re.IGNORECASE,
)
"""Pattern of the names whose values are masked; a class adds names of its own in `__nitro_mask__`."""


def as_json(entries: Iterable[DeliveryRecord]) -> str:
    """Returns deliveries as a JSON array of objects with all fields; times are in ISO 8601, UTC."""
    return json.dumps([asdict(entry) for entry in entries], default=datetime.isoformat, indent=2)


def details_as_json(entries: Iterable[DeliveryRecord], payloads: Mapping[str, Any]) -> str:
    """Returns deliveries as JSON, each with its payload.

    Args:
        payloads: the masked payload of each delivery, by its id.
    """
    details = [{**asdict(entry), "payload": payloads.get(entry.id)} for entry in entries]
    return json.dumps(details, default=datetime.isoformat, indent=2)


def as_table(entries: Iterable[DeliveryRecord]) -> str:
    """Returns a table of deliveries, with the last line of the error in the last column."""
    return table(HEADINGS, (_entry_cells(entry) for entry in entries))


def table(headings: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """Returns a line for each row under the headings. Control characters are escaped."""
    rows = [headings, *([escape_text(cell) for cell in row] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_align_row(row, widths) for row in rows)


def coloured(word: str, width: int = 0) -> str:
    """Returns a word in the colour of its state; `click.echo` removes the colour unless stdout is a terminal."""
    text = word.ljust(width)
    return click.style(text, fg=STATE_COLOURS[word]) if word in STATE_COLOURS else text


def details_as_text(entries: Iterable[DeliveryRecord], payloads: Mapping[str, Any]) -> str:
    """Returns the fields of each delivery line by line, then its runs, its error with traceback, and its payload."""
    return "\n\n".join(_entry_details(entry, payloads.get(entry.id)) for entry in entries)


def _entry_details(entry: DeliveryRecord, payload: Any) -> str:
    facts = {name: value for name, value in asdict(entry).items() if value not in (None, ())}
    error = facts.pop("error", "").splitlines()
    runs = [_run_line(**run) for run in facts.pop("history", ())]
    width = max(map(len, facts))
    lines = [f"{name:<{width}}{COLUMN_GAP}{escape_text(_format_value(value))}" for name, value in facts.items()]
    payload_lines = [] if payload is None else json.dumps(payload, indent=2, ensure_ascii=False).splitlines()
    sections = {"history": runs, "error": error, "payload": payload_lines}
    for name, section in sections.items():
        lines += [name, *(COLUMN_GAP + escape_text(line) for line in section)] if section else []
    return "\n".join(lines)


def _run_line(run: int, ended: datetime, why: str, outcome: str, **_facts: Any) -> str:
    return f"run {run}, {'ended' if outcome == 'retried' else outcome} {_format_value(ended)}: {why}"


def progress_bar(label: str, length: int) -> Any:
    """A progress bar on stderr; hidden unless stderr is a terminal."""
    hidden = not sys.stderr.isatty()
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=hidden)


def delivery_count(count: int) -> str:
    """Returns the number with its noun, such as `2 deliveries`."""
    return "1 delivery" if count == 1 else f"{count} deliveries"


def counts_by_state(counts: dict[str, int]) -> str:
    """Returns the number of deliveries in each state, such as `2 dead, 1 done`."""
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _entry_cells(entry: DeliveryRecord) -> tuple[str, ...]:
    cells = (entry.id, entry.state, entry.handler, entry.event or "-", entry.sender, str(entry.attempts))
    return (*cells, _due_or_age(entry), exception_line(entry.error or ""))


def _align_row(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = list(zip(row, widths, strict=True))
    while len(cells) > 1 and not cells[-1][0]:
        cells.pop()
    (last, _), others = cells[-1], cells[:-1]
    return COLUMN_GAP.join([*(coloured(cell, width) for cell, width in others), coloured(last)])


def _due_or_age(entry: DeliveryRecord) -> str:
    """Returns `in 5m` for a waiting delivery, else the time since its state changed, such as `5m ago`."""
    now = datetime.now(UTC)
    if entry.state == "waiting":
        return f"in {format_duration(entry.due - now)}" if entry.due is not None and entry.due > now else "due"
    since = {"queued": entry.published, "running": entry.started}.get(entry.state, entry.closed)
    return "-" if since is None else f"{format_duration(now - since)} ago"


def format_duration(time: timedelta) -> str:
    """Returns a length of time in its largest whole unit, such as `2h`."""
    seconds = max(0, int(time.total_seconds()))
    return next((f"{seconds // size}{unit}" for unit, size in UNITS if seconds >= size), f"{seconds}s")


def _format_value(value: Any) -> str:
    return value.isoformat(" ", "seconds") if isinstance(value, datetime) else str(value)


def mask_payload(payload: str) -> Any:
    """Returns a payload of the codec as JSON data, with sensitive values masked."""
    return _mask_value(json.loads(payload), ())


def _mask_value(value: Any, class_names: Collection[str]) -> Any:
    if isinstance(value, list):
        return [_mask_value(item, class_names) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("$dataclass"), list):
        reference, state = value["$dataclass"]
        return {"$dataclass": [reference, _mask_value(state, _masked_names_of(reference))]}
    class_names = _masked_names_of(value.get("class")) or class_names
    masked_names = {name for name in value if name in class_names or SENSITIVE_NAME.search(name)}
    return {name: MASK if name in masked_names else _mask_value(item, class_names) for name, item in value.items()}


def _masked_names_of(reference: Any) -> Collection[str]:
    """Returns the `__nitro_mask__` of a class; empty if the class cannot be found."""
    from nitro.errors import PayloadUnreadable
    from nitro.infrastructure.offload.codec.references import find_class

    while isinstance(reference, list) and reference:  # a parametrised class has the mask of its origin
        reference = reference[0]
    if not isinstance(reference, str):
        return ()
    try:
        return tuple(getattr(find_class(reference), "__nitro_mask__", ()))
    except PayloadUnreadable:
        return ()


def write_output(text: str, file: Path | None) -> None:
    """Prints a text, or writes it to a file without colours, and reports that on stderr.

    Raises:
        FileError: the file cannot be written.
    """
    if file is None:
        click.echo(text)
        return
    try:
        file.write_text(click.unstyle(text) + "\n", encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from error
    click.echo(f"written: {file}", err=True)
