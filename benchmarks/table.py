"""The table of rows, and their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from benchmarks.measure import Pair

Measure = Callable[[], Pair | float]
"""A function that measures a row: a `Pair` gives a ratio, a number stands for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A comparison that runs in a process of its own.

    Attributes:
        number: of the row in the table of goals.
        peer: what it is compared with; empty when a number stands for itself.
        package: the distribution whose version the table names.
        goal: largest value that meets the goal, or smallest with `at_least`; None for a floor, which has no goal.
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
    """The result of a row.

    Attributes:
        value: the ratio, or the number; None when a server was missing or the row failed.
        ours: our microseconds for one time.
        theirs: the peer's microseconds for one time.
        note: the reason why there is no value.
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


def register_row(
    name: str, number: int, what: str, peer: str, package: str, goal: float | None, **options: Any
) -> Callable[[Measure], Measure]:
    """Registers a row; the decorated function measures it."""

    def register(measure: Measure) -> Measure:
        assert name not in ROWS, name
        ROWS[name] = Row(
            name=name, number=number, what=what, peer=peer, package=package, goal=goal, measure=measure, **options
        )
        return measure

    return register


def measure_row(row: Row) -> Result:
    """Measures a row in this process."""
    measured = row.measure()
    pair = measured if isinstance(measured, Pair) else None
    value = pair.ratio if pair is not None else float(measured)  # type: ignore[arg-type]  # it is a number then
    return Result(
        **_row_fields(row),
        value=round(value, 3),
        met=None if row.goal is None else value >= row.goal if row.at_least else value <= row.goal,
        ours=pair and round(pair.ours * 1e6, 2),
        theirs=pair and round(pair.theirs * 1e6, 2),
    )


def unmeasured(row: Row, reason: str) -> Result:
    """Returns the result of a row that could not be measured."""
    return Result(**_row_fields(row), value=None, met=None, note=reason)


def _row_fields(row: Row) -> dict[str, Any]:
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
    """Returns a Markdown table."""
    lines = ["| # | what | against | goal | measured | |", "|---|---|---|---|---|---|"]
    for result in results:
        unit = "" if result.goal == "floor" else result.goal.lstrip("≤≥ 0123456789.")
        measured = "-" if result.value is None else f"{result.value:g}{unit}"
        sign = {True: "✓", False: "✗", None: result.note}[result.met]
        lines.append(f"| {result.number} | {result.what} | {result.peer} | {result.goal} | {measured} | {sign} |")
    return "\n".join(lines)


def as_json(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Returns the results for scripts."""
    return [asdict(result) for result in results]
