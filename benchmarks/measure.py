"""Measurements of two functions side by side, in turns, so that other load on the machine slows both alike."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

ROUNDS = 11
ROUND_SECONDS = 0.25
"""Seconds that one side of a round takes at least."""

TimedWork = Callable[[int], float]
"""A function that does its work a number of times, and returns the seconds that this took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The medians of the rounds, in seconds for one time."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """Our seconds divided by theirs: lower is better."""
        return self.ours / self.theirs


def repeat(function: Callable[[], object]) -> TimedWork:
    """Returns work that calls the function in a loop."""

    def work(times: int) -> float:
        start = perf_counter()
        for _ in range(times):
            function()
        return perf_counter() - start

    return work


def side_by_side(ours: TimedWork, theirs: TimedWork, *, rounds: int = ROUNDS, times: int | None = None) -> Pair:
    """Measures both in turns.

    `gc.freeze` hides the objects of the imports from the garbage collector, as servers do after their start: one
    collection of them takes longer than a round.

    Args:
        times: repetitions in a round; without it, as many as a round of `ROUND_SECONDS` needs.
    """
    gc.collect()
    gc.freeze()
    counts = [times or _repetitions(work) for work in (ours, theirs)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            gc.collect()
            seconds[side].append((ours, theirs)[side](counts[side]) / counts[side])
    return Pair(ours=median(seconds[0]), theirs=median(seconds[1]))


def _repetitions(work: TimedWork) -> int:
    """Returns the number of repetitions that fills a round."""
    times = 1
    while (seconds := work(times)) < ROUND_SECONDS / 4:
        times *= 2 if seconds > ROUND_SECONDS / 100 else 10
    return max(1, round(times * ROUND_SECONDS / seconds))
