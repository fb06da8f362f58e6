"""Emits to inline handlers."""

from __future__ import annotations

import compileall
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import blinker

from benchmarks.measure import ROUNDS, Pair, repeat, side_by_side
from benchmarks.shop import handlers
from benchmarks.table import register_row
from nitro.infrastructure.events import Event, emit, on


def _against_blinker(count: int) -> Pair:
    event, signal, sender = Event("bench"), blinker.Signal(), object()
    for handler in handlers(count):
        on(event)(handler)
        signal.connect(handler)
    return side_by_side(repeat(lambda: emit(event, sender)), repeat(lambda: signal.send(sender)))


for _count, _goal in ((1, 0.45), (5, 0.38), (20, 0.33)):
    register_row(f"inline-{_count}", 1, f"`emit`, {_count} inline handlers", "`Signal.send`", "blinker", _goal)(
        partial(_against_blinker, _count)
    )


def _against_a_loop(count: int) -> Pair:
    event, sender = Event("bench"), object()
    conditions_and_handlers: list[tuple[Callable[..., bool], Callable[..., None]]] = []
    for priority, handler in enumerate(handlers(count)):

        def condition(sender: object, **kwargs: object) -> bool:
            return True

        on(event, priority=priority, condition=condition)(handler)
        conditions_and_handlers.insert(0, (condition, handler))

    def by_hand() -> None:
        for condition, handler in conditions_and_handlers:
            if condition(sender):
                handler(sender)

    return side_by_side(repeat(lambda: emit(event, sender)), repeat(by_hand))


for _count in (5, 20):
    register_row(
        f"conditions-{_count}", 2, f"{_count} handlers with condition and priority", "a hand-written loop", "", 3.0
    )(partial(_against_a_loop, _count))


def _import_time(module: str) -> float:
    """Returns the milliseconds that a new interpreter takes to import the module."""
    code = f"from time import perf_counter as t; start = t(); import {module}; print((t() - start) * 1000)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@register_row(
    "import", 15, "`import nitro.infrastructure.events`, beyond", "`import blinker`", "blinker", 25.0, unit=" ms"
)
def imports() -> float:
    """Measures the difference of the medians. Both are compiled first, as pip does."""
    import nitro

    compileall.compile_dir(nitro.__path__[0], quiet=1)
    times = [(_import_time("nitro.infrastructure.events"), _import_time("blinker")) for _ in range(2 * ROUNDS)]
    ours, theirs = (median(side) for side in zip(*times, strict=True))
    return ours - theirs


@register_row("memory", 17, "memory of a registered inline handler", "", "", 1.5, unit=" KiB")
def memory() -> float:
    """Measures the memory of a registration, without the function itself."""
    import tracemalloc

    functions = handlers(10_000)
    event = Event("bench")
    on(event)(functions.pop())
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for function in functions:
        on(event)(function)
    after = tracemalloc.get_traced_memory()[0]
    return (after - before) / len(functions) / 1024


@register_row("many-events", 17, "`emit` with 10,000 events of 10 handlers registered", "one event", "", 1.1)
def many_events() -> Pair:
    """Measures an event alone in its namespace, and an event among 10,000."""
    from nitro.infrastructure.events import Namespace

    alone, namespace, functions, sender = Namespace().event("bench"), Namespace(), handlers(10), object()
    events = [namespace.event(f"event-{number}") for number in range(10_000)]
    for event in (alone, *events):
        for function in functions:
            on(event)(function)
    among_others = events[5_000]
    return side_by_side(repeat(lambda: emit(among_others, sender)), repeat(lambda: emit(alone, sender)))
