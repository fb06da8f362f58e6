"""Measuring two things side by side: in turns, so that what the machine does meanwhile meets both."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

ROUNDS = 11
A_ROUND = 0.25
"""Seconds that one side of a round takes at least."""

Work = Callable[[int], float]
"""Do it so many times; the seconds that it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The medians of the rounds, in seconds a time."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """Lower is better."""
        return self.ours / self.theirs


def looped(once: Callable[[], object]) -> Work:
    """What is done again and again."""

    def work(times: int) -> float:
        began = perf_counter()
        for _ in range(times):
            once()
        return perf_counter() - began

    return work


def side_by_side(ours: Work, theirs: Work, *, rounds: int = ROUNDS, times: int | None = None) -> Pair:
    """Measure both in turns; `times` a round, or as often as takes long enough.

    What is there before is kept from the collector, as servers keep what they have imported: a look through it takes
    longer than a round.
    """
    gc.collect()
    gc.freeze()
    counts = [times or _enough(work) for work in (ours, theirs)]
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            gc.collect()
            taken[side].append((ours, theirs)[side](counts[side]) / counts[side])
    return Pair(ours=median(taken[0]), theirs=median(taken[1]))


def _enough(work: Work) -> int:
    """How often it must be done to fill a round."""
    times = 1
    while (took := work(times)) < A_ROUND / 4:
        times *= 2 if took > A_ROUND / 100 else 10
    return max(1, round(times * A_ROUND / took))
