"""The demo's printed timeline: a line for everything that happens, with its time."""

from __future__ import annotations

import logging
from time import monotonic

import click

SYMBOLS = {
    "worker": ("●", "blue"),
    "inline": ("✔", "green"),
    "skipped": ("○", "yellow"),
    "cancelled": ("✘", "red"),
    "placed": ("➜", "cyan"),
    "effect": ("★", "magenta"),
    "passed": ("✔", "green"),
    "failed": ("✘", "red"),
}


class Timeline(logging.Handler):
    """Prints in columns; as a log handler, what the shop's inline handlers say. Coloured on a terminal only."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = monotonic()

    @property
    def now(self) -> float:
        """Seconds since the demo began."""
        return monotonic() - self._begun

    def heading(self, text: str) -> None:
        """Begin a part."""
        click.secho(f"\n{text}", bold=True)

    def line(self, kind: str, who: str, what: str, at: float | None = None) -> None:
        """Say who did what, now or at an earlier time of `now`."""
        symbol, color = SYMBOLS[kind]
        seconds = self.now if at is None else at
        click.echo(f"  {seconds:6.2f} s  {click.style(f'{symbol} {kind:<9}', fg=color)}  {who:<17}  {what}")

    def emit(self, record: logging.LogRecord) -> None:
        """Print what an inline handler logs, under its name."""
        self.line("inline", record.funcName, record.getMessage())
