"""How time and memory grow: with handlers, with the payload, with the outbox's backlog and with workers."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import log
from statistics import linear_regression, median
from typing import Any

from celery import Celery

from benchmarks.measure import looped
from benchmarks.rows.publishing import app_on, empty_queue
from benchmarks.rows.tracked import fill
from benchmarks.rows.working import workshops
from benchmarks.servers import database
from benchmarks.shop import KWARGS, handlers, order
from nitro.infrastructure.database import create_tables
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.publishing.publisher import publisher
from nitro.infrastructure.outbox import pending

ROUNDS = 5
LINEAR, FLAT = 1.1, 0.1
"""The largest exponents that pass for linear and for flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What was measured at each size.

    Attributes:
        what: is measured, with its unit.
        by: what the sizes are sizes of.
        most: the largest exponent of the power of the size that it may grow by.
    """

    what: str
    by: str
    most: float = LINEAR
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        """Of the power law that fits best: 1 is linear, 0 is flat."""
        return linear_regression([log(size) for size, _ in self.points], [log(value) for _, value in self.points]).slope

    @property
    def ok(self) -> bool:
        """Whether it grows no faster than it may."""
        return self.exponent <= self.most


def inline() -> Iterator[Curve]:
    """An emit to so many inline handlers."""
    curve = Curve(what="emit, µs", by="inline handlers")
    for count in (1, 3, 10, 30, 100, 300, 1_000):
        event = Event("growth")
        for handler in handlers(count):
            on(event, name=handler.__name__)(handler)
        curve.points.append((count, _time(lambda event=event: emit(event, "ada"), 2_000 // count + 5) * 1e6))
    yield curve


def offloaded() -> Iterator[Curve]:
    """An emit to so many offloaded handlers, on the memory broker."""
    app = app_on("memory")
    took = Curve(what="emit, µs", by="offloaded handlers")
    peak = Curve(what="peak of an emit, KiB", by="offloaded handlers")
    with empty_queue(app) as emptied:
        for count in (1, 3, 10, 30, 100, 300, 1_000):
            event, sold = _event(app, count, "broker"), order()

            def emitted(event: Event = event, sold: Any = sold) -> None:
                emit(event, sold, **KWARGS)

            emitted()
            took.points.append((count, _time(emitted, 300 // count + 2, emptied) * 1e6))
            peak.points.append((count, _peak(emitted) / 1024))
    yield took
    yield peak


def payload() -> Iterator[Curve]:
    """A tracked emit with a text so long, on SQLite and the memory broker."""
    app = app_on("memory")
    took = Curve(what="tracked emit, µs", by="payload, KiB")
    peak = Curve(what="peak of an emit, KiB", by="payload, KiB")
    with database("sqlite") as place, empty_queue(app) as emptied:
        bind(app, place)
        create_tables()
        event = _event(app, 1, "at-least-once")
        for kibibytes in (0.1, 0.5, 2, 8, 32, 128, 256):

            def emitted(long: str = "x" * int(kibibytes * 1024)) -> None:
                emit(event, "ada", text=long)

            emitted()
            took.points.append((kibibytes, _time(emitted, 40, emptied) * 1e6))
            peak.points.append((kibibytes, _peak(emitted) / 1024))
    yield took
    yield peak


def outbox() -> Iterator[Curve]:
    """A relay takes 500 rows, and a tracked emit, while so many wait, on PostgreSQL."""
    app = app_on("memory")
    take = Curve(what="take 500 rows, µs", by="waiting rows", most=FLAT)
    kept = Curve(what="tracked emit, µs", by="waiting rows", most=FLAT)
    with database("postgresql") as place, empty_queue(app) as emptied:
        bind(app, place)
        create_tables()
        event = _event(app, 1, "at-least-once")
        emit(event, "ada")
        assert publisher.drain(60.0)
        for count in (1_000, 10_000, 100_000, 1_000_000):
            fill(place, count)
            kept.points.append((count, _time(lambda: emit(event, "ada"), 40, emptied) * 1e6))
            pending.take_due(1)
            rounds = 1 if count == 1_000 else ROUNDS
            take.points.append((count, _time(lambda: pending.take_due(500), 1, rounds=rounds) * 1e6))
    yield take
    yield kept


def workers() -> Iterator[Curve]:
    """A message of a handler that does nothing, with so many worker processes."""
    curve = Curve(what="a message, µs", by="workers")
    for count in (1, 2, 3, 4):
        with workshops("-c", str(count)) as ((crew, workshop), _):
            work, sold = crew.work(lambda workshop=workshop: emit(workshop.nothing, order(), **KWARGS)), 2_000
            work(200)
            curve.points.append((count, median(work(sold) / sold for _ in range(3)) * 1e6))
    yield curve


GROWTH: dict[str, Callable[[], Iterator[Curve]]] = {
    each.__name__: each for each in (inline, offloaded, payload, outbox, workers)
}


def _event(app: Celery, count: int, delivery: str) -> Event:
    """An event with so many offloaded handlers, of names that no other one has."""
    event = Event("growth")
    for handler in handlers(count):
        on(event, offload={"delivery": delivery}, name=f"growth{count}.{handler.__name__}")(handler)
    return event


def _time(
    once: Callable[[], object], times: int, before: Callable[[], object] = gc.collect, rounds: int = ROUNDS
) -> float:
    """Seconds a time: the median of some rounds."""
    taken = []
    for _ in range(rounds):
        before()
        taken.append(looped(once)(times) / times)
        assert publisher.drain(60.0)
    return median(taken)


def _peak(once: Callable[[], object]) -> float:
    """Bytes that one time allocates at most."""
    tracemalloc.start()
    once()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert publisher.drain(60.0)
    return most
