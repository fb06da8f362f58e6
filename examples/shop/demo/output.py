"""The demo's printed timeline: a line for each step, with its time."""

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
    """A log handler that prints lines in columns, with colours on a terminal only.

    As a log handler it prints the messages of the shop's inline handlers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._start = monotonic()

    @property
    def now(self) -> float:
        """The seconds since the demo's start."""
        return monotonic() - self._start

    def heading(self, text: str) -> None:
        """Prints the heading of a part."""
        click.secho(f"\n{text}", bold=True)

    def line(self, kind: str, name: str, details: str, at: float | None = None) -> None:
        """Prints a line with the present time, or with `at`, an earlier value of `now`."""
        symbol, color = SYMBOLS[kind]
        seconds = self.now if at is None else at
        click.echo(f"  {seconds:6.2f} s  {click.style(f'{symbol} {kind:<9}', fg=color)}  {name:<17}  {details}")

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the log message of an inline handler, under the handler's name."""
        self.line("inline", record.funcName, record.getMessage())
