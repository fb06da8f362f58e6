"""Deliveries that kill their worker process, among good ones."""

from __future__ import annotations

from tests.chaos.crew import PREFORK, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import tail
from tests.chaos.scenarios.run import Run, scenario

KINDS = ("exit", "crash", "loop")


@scenario()
def poison(run: Run, outcome: Outcome) -> None:
    """Good deliveries are done, poison becomes dead letters, and the worker stays alive."""
    _poison(run, outcome, KINDS, run.size(1, 6))


@scenario()
def memory_hog(run: Run, outcome: Outcome) -> None:
    """Handlers that need more memory than allowed become dead letters, and the worker stays alive."""
    _poison(run, outcome, ("hog",), run.size(1, 5))


def _poison(run: Run, outcome: Outcome, kinds: tuple[str, ...], each: int) -> None:
    outcome.handlers = 1
    good = run.size(100, 980)
    with run.world(handlers="victim.handlers,victim.poison") as world:
        worker = Crew(world, PREFORK).ready().workers[0]
        emitters = [world.emitter("good", event="single", count=good, pause=0.005)]
        emitters += [world.emitter(f"poison-{kind}", event=f"poison.{kind}", count=each) for kind in kinds]
        for emitter in emitters:
            world.facts(emitter)
        world.judge(outcome, run.patience)
        outcome.faults = dict.fromkeys(kinds, each)
        dead = "SELECT count(*) FROM nitro_delivery WHERE state = 'dead' AND handler LIKE 'victim.poison.%'"
        found = world.ledger.number(dead)
        outcome.must(found == each * len(kinds), f"only {found} dead letters")
        done = world.ledger.number("SELECT count(*) FROM nitro_delivery WHERE state = 'done'")
        outcome.must(done == good, f"{done} of {good} good ones are done")
        outcome.must(worker.alive, f"the worker died: {tail(worker.text)}")
