"""Mutants: the library without one of its safeguards; the named scenario must find out, or it proves nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.chaos.outcome import Outcome
from tests.chaos.scenarios import SCENARIOS, Run

CHANCES = 3
"""Runs in one of which a mutant must be caught: where a kill falls is left to chance, and a short run has few."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A safeguard that is taken away, and the scenario on a stack that must fail then."""

    name: str
    scenario: str
    stack: str

    def __call__(self, run: Run) -> Outcome:
        """Run the scenario, which must report something lost or done twice; what is left to chance has some chances."""
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
