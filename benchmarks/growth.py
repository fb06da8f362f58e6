"""Curves of time and memory by number of handlers, size of payload, outbox backlog and number of workers."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import log
from statistics import linear_regression, median
from typing import Any

from celery import Celery

from benchmarks.measure import repeat
from benchmarks.rows.publishing import app_on, empty_queue
from benchmarks.rows.tracked import copy_emissions
from benchmarks.rows.working import worker_pair
from benchmarks.servers import database
from benchmarks.shop import KWARGS, handlers, order
from nitro.infrastructure.database import create_tables
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox import pending

ROUNDS = 5
MESSAGES = 2_000
"""Messages of a round of workers."""
MAX_LINEAR_EXPONENT, MAX_FLAT_EXPONENT = 1.1, 0.1
"""The largest exponents that count as linear and as flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The values that were measured at each size.

    Attributes:
        what: the measured quantity, with its unit.
        by: the quantity that grows.
        max_exponent: limit of `exponent`.
    """

    what: str
    by: str
    max_exponent: float = MAX_LINEAR_EXPONENT
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        """The exponent of the power law that fits best: 1 is linear, 0 is flat."""
        return linear_regression([log(size) for size, _ in self.points], [log(value) for _, value in self.points]).slope

    @property
    def ok(self) -> bool:
        """Whether the exponent is within its limit."""
        return self.exponent <= self.max_exponent


def inline() -> Iterator[Curve]:
    """Measures an emit by the number of inline handlers."""
    curve = Curve(what="emit, µs", by="inline handlers")
    for count in (1, 3, 10, 30, 100, 300, 1_000):
        event = Event("growth")
        for handler in handlers(count):
            on(event, name=handler.__name__)(handler)
        curve.points.append((count, _seconds_each(lambda event=event: emit(event, "ada"), 2_000 // count + 5) * 1e6))
    yield curve


def offloaded() -> Iterator[Curve]:
    """Measures an emit by the number of offloaded handlers, on the memory broker."""
    app = app_on("memory")
    emit_curve = Curve(what="emit, µs", by="offloaded handlers")
    peak_curve = Curve(what="peak of an emit, KiB", by="offloaded handlers")
    with empty_queue(app) as purge:
        for count in (1, 3, 10, 30, 100, 300, 1_000):
            event, sender = _event(app, count, "broker"), order()

            def emit_once(event: Event = event, sender: Any = sender) -> None:
                emit(event, sender, **KWARGS)

            emit_once()
            emit_curve.points.append((count, _seconds_each(emit_once, 300 // count + 2, purge) * 1e6))
            peak_curve.points.append((count, _peak_bytes(emit_once) / 1024))
    yield emit_curve
    yield peak_curve


def payload() -> Iterator[Curve]:
    """Measures a tracked emit by the length of a text, on SQLite and the memory broker."""
    app = app_on("memory")
    emit_curve = Curve(what="tracked emit, µs", by="payload, KiB")
    peak_curve = Curve(what="peak of an emit, KiB", by="payload, KiB")
    with database("sqlite") as engine, empty_queue(app) as purge:
        bind(app, engine)
        create_tables()
        event = _event(app, 1, "at-least-once")
        for kibibytes in (0.1, 0.5, 2, 8, 32, 128, 256):

            def emit_once(text: str = "x" * int(kibibytes * 1024)) -> None:
                emit(event, "ada", text=text)

            emit_once()
            emit_curve.points.append((kibibytes, _seconds_each(emit_once, 40, purge) * 1e6))
            peak_curve.points.append((kibibytes, _peak_bytes(emit_once) / 1024))
    yield emit_curve
    yield peak_curve


def outbox() -> Iterator[Curve]:
    """Measures a relay that takes 500 rows, and a tracked emit, by the number of waiting rows, on PostgreSQL."""
    app = app_on("memory")
    take_curve = Curve(what="take 500 rows, µs", by="waiting rows", max_exponent=MAX_FLAT_EXPONENT)
    emit_curve = Curve(what="tracked emit, µs", by="waiting rows", max_exponent=MAX_FLAT_EXPONENT)
    with database("postgresql") as engine, empty_queue(app) as purge:
        bind(app, engine)
        create_tables()
        event = _event(app, 1, "at-least-once")
        emit(event, "ada")
        assert publisher.drain(60.0)
        for count in (1_000, 10_000, 100_000, 1_000_000):
            copy_emissions(engine, count)
            emit_curve.points.append((count, _seconds_each(lambda: emit(event, "ada"), 40, purge) * 1e6))
            pending.take_due(1)
            rounds = 1 if count == 1_000 else ROUNDS
            take_curve.points.append((count, _seconds_each(lambda: pending.take_due(500), 1, rounds=rounds) * 1e6))
    yield take_curve
    yield emit_curve


def workers() -> Iterator[Curve]:
    """Measures a message of a no-op handler by the number of worker processes."""
    curve = Curve(what="a message, µs", by="workers")
    for count in (1, 2, 3, 4):
        with worker_pair("-c", str(count)) as ((worker, nitro_app), _):
            work = worker.throughput(lambda app=nitro_app: emit(app.noop, order(), **KWARGS))
            work(200)
            curve.points.append((count, median(work(MESSAGES) / MESSAGES for _ in range(3)) * 1e6))
    yield curve


GROWTH: dict[str, Callable[[], Iterator[Curve]]] = {
    curves.__name__: curves for curves in (inline, offloaded, payload, outbox, workers)
}


def _event(app: Celery, count: int, delivery: str) -> Event:
    """Returns an event with this number of offloaded handlers; their names contain the number."""
    event = Event("growth")
    for handler in handlers(count):
        on(event, offload={"delivery": delivery}, name=f"growth{count}.{handler.__name__}")(handler)
    return event


def _seconds_each(
    function: Callable[[], object], times: int, before: Callable[[], object] = gc.collect, rounds: int = ROUNDS
) -> float:
    """Returns the seconds that one call takes, the median of the rounds; `before` runs before each round."""
    seconds = []
    for _ in range(rounds):
        before()
        seconds.append(repeat(function)(times) / times)
        assert publisher.drain(60.0)
    return median(seconds)


def _peak_bytes(function: Callable[[], object]) -> float:
    """Returns the peak of the memory that one call allocates."""
    tracemalloc.start()
    function()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert publisher.drain(60.0)
    return peak
