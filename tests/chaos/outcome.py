"""Outcome: what a scenario has shown on a stack, and what of it is not what it must be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

HEADINGS = ("SCENARIO", "STACK", "EVENTS", "HANDLERS", "LOST", "DOUBLE", "SECONDS", "OK", "FAULTS", "FIGURES", "WRONG")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The figures of one run.

    Attributes:
        handlers: of each event.
        faults: how many of each kind were injected.
        lost: committed, and without effect when the system had come to rest.
        double: effects beyond the first of a handler.
        figures: whatever else was measured.
        wrong: what must not be, in words.
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
        """Whether all is as it must be."""
        return not self.wrong

    def must(self, fact: bool, otherwise: str) -> None:
        """Note what is wrong unless a fact holds."""
        if not fact:
            self.wrong.append(otherwise)


def as_table(outcomes: Iterable[Outcome]) -> str:
    """One line for each, under headings."""
    rows: list[Sequence[str]] = [HEADINGS, *(_cells(outcome) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def as_json(outcomes: Iterable[Outcome]) -> str:
    """An array of objects."""
    return json.dumps([{**asdict(outcome), "ok": outcome.ok} for outcome in outcomes], indent=2)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    counts = (outcome.events, outcome.handlers, outcome.lost, outcome.double, round(outcome.seconds, 1))
    said = "yes" if outcome.ok else "NO"
    details = (_words(outcome.faults), _words(outcome.figures), "; ".join(outcome.wrong).replace("\n", " | ")[:600])
    return (outcome.scenario, outcome.stack, *map(str, counts), said, *details)


def _words(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
