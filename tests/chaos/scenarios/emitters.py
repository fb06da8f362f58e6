"""Emitters and relays that are killed at each failpoint."""

from __future__ import annotations

from tests.chaos.crew import THREADS, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.scenarios.run import Run, scenario

EMITTER = ("row written", "committed", "publishing", "published")
RELAY = ("claiming", "claimed", "publishing", "published")
NURSERY = 3600.0
"""Seconds that all children of a kind may take."""


@scenario()
def emitter_kills(run: Run, outcome: Outcome) -> None:
    """Committed events of emitters that are killed between writing, committing and publishing are handled."""
    _die("emitter", "ordered", EMITTER, run, outcome)


@scenario()
def relay_kills(run: Run, outcome: Outcome) -> None:
    """Deliveries of relays that are killed between claiming and publishing are published by other relays."""
    _die("relay", "delayed", RELAY, run, outcome)


def _die(what: str, event: str, places: tuple[str, ...], run: Run, outcome: Outcome) -> None:
    outcome.handlers = 3 if event == "ordered" else 1
    kills = run.size(3, 500)
    with run.world() as world:
        crew = Crew(world, THREADS).ready()
        for place in places:
            name = f"{what} at {place}".replace(" ", "-")
            said = world.run(name, "victim.nursery", what, place, kills, event, run.seed, within=NURSERY)
            died = int(said.splitlines()[-1])
            outcome.faults[f"{what} at {place}"] = died
            outcome.must(died == kills, f"only {died} of {kills} died at {place}")
        world.judge(outcome, run.patience)
        outcome.must(all(worker.alive for worker in crew.workers), "the worker died")
