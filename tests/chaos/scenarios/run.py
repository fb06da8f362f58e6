"""What each scenario is given, and the list that it is in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TypeVar

from tests.chaos.outcome import Outcome
from tests.chaos.servers import Servers
from tests.chaos.world import STACKS, World, world

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of a scenario.

    Attributes:
        full: the size; a short one is hasty too.
        mutant: the safeguard that the library lacks.
    """

    servers: Servers
    folder: Path
    stack: str
    full: bool = False
    seed: int = 1
    mutant: str | None = None
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def size(self, short: T, full: T) -> T:
        """The number for this size."""
        return full if self.full else short

    @property
    def patience(self) -> float:
        """Seconds in which all must have come to rest."""
        return 12.0 if self.mutant else self.size(45.0, 300.0)

    @contextmanager
    def world(self, *, handlers: str = "victim.handlers") -> Iterator[World]:
        """The world that it happens in."""
        hasty = not self.full
        with world(self.servers, self.folder, self.stack, haste=hasty, mutant=self.mutant, handlers=handlers) as made:
            yield made


Act = Callable[[Run, Outcome], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario and the stacks on which it makes sense."""

    name: str
    act: Act
    stacks: tuple[str, ...]

    def __call__(self, run: Run) -> Outcome:
        """Run it; an error in it is something wrong too."""
        outcome = Outcome(scenario=self.name, stack=run.stack)
        began = monotonic()
        try:
            self.act(run, outcome)
        except AssertionError as error:
            outcome.wrong.append(str(error))
        outcome.seconds = monotonic() - began
        return outcome


SCENARIOS: dict[str, Scenario] = {}


def scenario(*stacks: str) -> Callable[[Act], Act]:
    """Put a function among the scenarios, under its name; on all stacks unless some are named."""

    def add(act: Act) -> Act:
        SCENARIOS[act.__name__] = Scenario(act.__name__, act, stacks or STACKS)
        return act

    return add
