"""Brokers that are killed or frozen, or lose their messages."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import Any

from tests.chaos.crew import PREFORK, THREADS, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import until
from tests.chaos.scenarios.run import Run, scenario
from tests.chaos.world import QUEUE, World

QUICK = 0.05
"""Seconds within which an emit returns."""
BETWEEN = 120.0


@scenario()
def broker_faults(run: Run, outcome: Outcome) -> None:
    """A broker that is killed, frozen, emptied or without its queue loses no event of a constant load."""
    outcome.handlers = 3
    events, times = run.size(150, 5_000), run.size(1, 10)
    with run.world() as world:
        crew = Crew(world, PREFORK, THREADS).ready()
        stop = world.folder / "stop"
        emitter = world.emitter(event="ordered", count=events, stop=str(stop), pause=run.size(0.02, 0.05), loose=10)
        for name, fault in _faults(world, run.size(6.0, 30.0)).items():
            for _ in range(times):
                _go_on(world, crew)
                fault()
                outcome.faults[name] = outcome.faults.get(name, 0) + 1
        _go_on(world, crew)
        stop.touch()
        facts = world.facts(emitter, run.size(60.0, 900.0))
        outcome.figures["workers that ended"] = crew.deaths
        _judge(run, world, outcome, facts)


def _go_on(world: World, crew: Crew) -> None:
    """Waits until the emitter has committed more events, and until a handler has run after that."""
    committed = world.ledger.number("SELECT count(*) FROM committed")
    until(lambda: world.ledger.number("SELECT count(*) FROM committed") >= committed + 20, BETWEEN, "more is emitted")
    effects = world.ledger.effects()
    until(lambda: crew.tend() or world.ledger.effects() > effects, BETWEEN, "more is done")


def _faults(world: World, frozen: float) -> dict[str, Callable[[], None]]:
    """Returns the faults of this broker by name."""
    faults = {"emptied": lambda: world.messages.empty(QUEUE)}
    server = world.server
    if server is None:
        return faults

    def kill() -> None:
        server.kill()
        server.start()

    def freeze() -> None:
        server.freeze()
        sleep(frozen)
        server.thaw()

    return {"killed": kill, "frozen": freeze, "deleted": lambda: world.messages.delete(QUEUE), **faults}


def _judge(run: Run, world: World, outcome: Outcome, facts: dict[str, Any]) -> None:
    """Judges the tracked events; an untracked one is only as durable as the broker."""
    for kind in ("tracked", "untracked"):
        took = facts[kind]
        share = sum(seconds <= QUICK for seconds in took) / len(took)
        outcome.figures[f"{kind} emits"] = len(took)
        outcome.figures[f"{kind} within 50 ms"] = f"{share:.2%}"
        outcome.figures[f"longest {kind} ms"] = round(max(took) * 1000)
        outcome.must(not run.full or share >= 0.999, f"only {share:.2%} of {kind} emits within 50 ms")
    outcome.figures |= {"emits that raised": len(facts["raised"]), "untracked that raised": facts["refused"]}
    outcome.must(not facts["raised"], f"tracked emits raised: {facts['errors']}")
    world.judge(outcome, run.patience, aside="loose")
    outcome.figures["untracked lost"] = len(world.ledger.balance().lost) - outcome.lost
