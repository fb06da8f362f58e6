"""Rows: what is compared with what, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from benchmarks.measure import Pair

Measure = Callable[[], Pair | float]
"""A pair gives a ratio; a number is what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison, run in a process of its own.

    Attributes:
        number: of the row in the table of goals.
        peer: what it is compared with; empty when a number stands for itself.
        package: the distribution whose version the table names.
        goal: at most this, `at_least` turns it round; None where it is only to be known.
        needs: brokers and databases that must answer.
        environ: settings of its process.
    """

    name: str
    number: int
    what: str
    peer: str
    package: str
    goal: float | None
    measure: Measure
    at_least: bool = False
    unit: str = ""
    needs: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a row.

    Attributes:
        value: the ratio, or the number; None when a server was missing.
        ours: microseconds a time.
        theirs: the same, of the peer.
        note: why there is no value.
    """

    name: str
    number: int
    what: str
    peer: str
    goal: str
    value: float | None
    met: bool | None
    ours: float | None = None
    theirs: float | None = None
    note: str = ""


ROWS: dict[str, Row] = {}


def row(
    name: str, number: int, what: str, peer: str, package: str, goal: float | None, **more: Any
) -> Callable[[Measure], Measure]:
    """Put a row into the table."""

    def add(measure: Measure) -> Measure:
        assert name not in ROWS, name
        ROWS[name] = Row(
            name=name, number=number, what=what, peer=peer, package=package, goal=goal, measure=measure, **more
        )
        return measure

    return add


def result(row: Row) -> Result:
    """Measure a row here and now."""
    measured = row.measure()
    pair = measured if isinstance(measured, Pair) else None
    value = pair.ratio if pair is not None else float(measured)  # type: ignore[arg-type]  # it is a number then
    return Result(
        **_facts(row),
        value=round(value, 3),
        met=None if row.goal is None else value >= row.goal if row.at_least else value <= row.goal,
        ours=pair and round(pair.ours * 1e6, 2),
        theirs=pair and round(pair.theirs * 1e6, 2),
    )


def missing(row: Row, why: str) -> Result:
    """A row that could not be measured, which is said and not left out."""
    return Result(**_facts(row), value=None, met=None, note=why)


def _facts(row: Row) -> dict[str, Any]:
    peer = f"{row.peer} ({row.package} {version(row.package)})" if row.package else row.peer
    sign = "≥" if row.at_least else "≤"
    return {
        "name": row.name,
        "number": row.number,
        "what": row.what,
        "peer": peer,
        "goal": "floor" if row.goal is None else f"{sign} {row.goal:g}{row.unit}",
    }


def as_text(results: Iterable[Result]) -> str:
    """A Markdown table."""
    lines = ["| # | what | against | goal | measured | |", "|---|---|---|---|---|---|"]
    for each in results:
        unit = "" if each.goal == "floor" else each.goal.lstrip("≤≥ 0123456789.")
        measured = "-" if each.value is None else f"{each.value:g}{unit}"
        sign = {True: "✓", False: "✗", None: each.note}[each.met]
        lines.append(f"| {each.number} | {each.what} | {each.peer} | {each.goal} | {measured} | {sign} |")
    return "\n".join(lines)


def as_json(results: Iterable[Result]) -> list[dict[str, Any]]:
    """For scripts."""
    return [asdict(each) for each in results]
