"""The outcome of a scenario on a stack, with the facts that are wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

HEADINGS = ("SCENARIO", "STACK", "EVENTS", "HANDLERS", "LOST", "DOUBLE", "SECONDS", "OK", "FAULTS", "FIGURES", "WRONG")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The figures of a run.

    Attributes:
        handlers: number of handlers of each event.
        faults: number of injected faults by kind.
        lost: number of committed events' effects that are missing when all deliveries are closed.
        double: number of effects beyond the first of a handler.
        figures: further measurements.
        wrong: descriptions of the facts that are wrong.
    """

    scenario: str
    stack: str
    events: int = 0
    handlers: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    double: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no fact is wrong."""
        return not self.wrong

    def must(self, fact: bool, otherwise: str) -> None:
        """Records a description as wrong unless the fact holds."""
        if not fact:
            self.wrong.append(otherwise)


def as_table(outcomes: Iterable[Outcome]) -> str:
    """Returns a table with a line for each outcome."""
    rows: list[Sequence[str]] = [HEADINGS, *(_cells(outcome) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def as_json(outcomes: Iterable[Outcome]) -> str:
    """Returns a JSON array with an object for each outcome."""
    return json.dumps([{**asdict(outcome), "ok": outcome.ok} for outcome in outcomes], indent=2)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    counts = (outcome.events, outcome.handlers, outcome.lost, outcome.double, round(outcome.seconds, 1))
    said = "yes" if outcome.ok else "NO"
    details = (_words(outcome.faults), _words(outcome.figures), "; ".join(outcome.wrong).replace("\n", " | ")[:600])
    return (outcome.scenario, outcome.stack, *map(str, counts), said, *details)


def _words(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
