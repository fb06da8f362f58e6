"""Workers that are killed: main processes, prefork children, and whole workers at a failpoint."""

from __future__ import annotations

from collections import Counter

from tests.chaos.crew import PREFORK, THREADS, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import until
from tests.chaos.scenarios.run import Run, scenario

PLACES = ("handled", "committing", "handled", "claimed by a worker")
KINDS = ("main", "child", "failpoint")
BETWEEN = 120.0
"""Seconds within which the next part of the load is done."""


@scenario()
def worker_kills(run: Run, outcome: Outcome) -> None:
    """A prefork and a thread worker that are killed again and again during the load lose and repeat nothing."""
    outcome.handlers = 3
    events, kills = run.size(120, 10_000), run.size(5, 54)
    with run.world() as world:
        crew = Crew(world, PREFORK, THREADS).ready()
        emitter = world.emitter(event="ordered", count=events)
        faults: Counter[str] = Counter()
        for number in range(1, kills + 1):
            wanted = events * outcome.handlers * number // (kills + 1)

            def so_far(wanted: int = wanted) -> bool:
                crew.tend()
                return world.ledger.effects() >= wanted

            until(so_far, BETWEEN, f"{wanted} effects")
            faults[_kill(run, crew, KINDS[number % len(KINDS)], PLACES[number // len(KINDS) % len(PLACES)])] += 1
        world.facts(emitter)
        until(lambda: crew.tend() == 0 and world.ledger.open() == 0, run.patience, "the outbox comes to rest")
        outcome.faults = dict(faults)
        world.judge(outcome, run.patience)


def _kill(run: Run, crew: Crew, kind: str, place: str) -> str:
    """Kills a main process, a child, or a worker that is started again with a fault at the failpoint."""
    if kind == "main":
        return crew.kill_main(run.chance)
    if kind == "child":
        return crew.kill_child(run.chance)
    index = run.chance.randrange(len(crew.workers))
    crew.workers[index].kill_all()
    crew.renew(index, {"CHAOS_AT": f"{place}:{run.chance.randint(3, 12)}:group"})
    return f"group at {place}"
