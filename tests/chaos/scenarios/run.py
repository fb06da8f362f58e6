"""The run of a scenario, and the registry of all scenarios."""

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
    """The parameters of a scenario's run.

    Attributes:
        full: whether the run has the full size; a short run has short waits too.
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
        """Returns the number for the run's size."""
        return full if self.full else short

    @property
    def patience(self) -> float:
        """Seconds within which all deliveries must be closed."""
        return 12.0 if self.mutant else self.size(45.0, 300.0)

    @contextmanager
    def world(self, *, handlers: str = "victim.handlers") -> Iterator[World]:
        """Opens the world of the run."""
        hasty = not self.full
        with world(self.servers, self.folder, self.stack, haste=hasty, mutant=self.mutant, handlers=handlers) as made:
            yield made


Act = Callable[[Run, Outcome], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario and the stacks that it runs on."""

    name: str
    act: Act
    stacks: tuple[str, ...]

    def __call__(self, run: Run) -> Outcome:
        """Runs the scenario, and returns its outcome; a failed assertion is recorded as wrong."""
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
    """Registers a function as a scenario under its name, on the named stacks or on all."""

    def add(act: Act) -> Act:
        SCENARIOS[act.__name__] = Scenario(act.__name__, act, stacks or STACKS)
        return act

    return add
