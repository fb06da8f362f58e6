"""Mutants: the library without one of its safeguards, which the named scenario must notice."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.chaos.outcome import Outcome
from tests.chaos.scenarios import SCENARIOS, Run

CHANCES = 3
"""The number of runs, one of which must catch the mutant, because a short run has few kills at random places."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A missing safeguard, and the scenario and stack that must fail without it."""

    name: str
    scenario: str
    stack: str

    def __call__(self, run: Run) -> Outcome:
        """Runs the scenario up to `CHANCES` times; the outcome is wrong unless a run loses or repeats an effect."""
        for seed in range(run.seed, run.seed + CHANCES):
            chance = replace(run, mutant=self.name, seed=seed, folder=run.folder / str(seed))
            found = SCENARIOS[self.scenario](chance)
            if found.lost or found.double:
                break
        outcome = replace(found, scenario=f"{self.name} in {self.scenario}", wrong=[])
        outcome.must(found.lost > 0 or found.double > 0, f"not caught; the scenario says: {found.wrong}")
        return outcome


MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant("no-sweep", "emitter_kills", "embedded"),
        Mutant("no-ledger", "worker_kills", "rabbitmq"),
        Mutant("no-fence", "frozen_worker", "embedded"),
        Mutant("early-acknowledgement", "broker_promise", "rabbitmq"),
        Mutant("not-mandatory", "broker_promise", "rabbitmq"),
    )
}
