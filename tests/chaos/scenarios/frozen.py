"""A worker that is frozen until other workers count it as dead, and is thawed then."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.crew import PREFORK, THREADS, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import is_stopped, until
from tests.chaos.scenarios.run import Run, scenario
from tests.chaos.world import World


@scenario()
def frozen_worker(run: Run, outcome: Outcome) -> None:
    """A frozen worker's delivery is run by another worker, and the frozen run closes nothing after the thaw.

    The worker runs one delivery at a time, so that none is frozen in a transaction, as in the next scenario.
    """
    _freeze(run, outcome, "claimed by a worker", lambda world: world.ledger.free() == 0, "-c", "1")


@scenario("redis", "rabbitmq")
def frozen_in_transaction(run: Run, outcome: Outcome) -> None:
    """A worker that is frozen in a transaction delays only its own row.

    SQLite is left out, because it has a single write lock.
    """
    _freeze(run, outcome, "committing", lambda world: world.ledger.free() == 0 < world.ledger.open())


def _freeze(run: Run, outcome: Outcome, place: str, done: Callable[[World], bool], *options: str) -> None:
    outcome.handlers = 1
    rounds, events = run.size(1, 20), run.size(12, 40)
    with run.world() as world:
        for number in range(rounds):
            pool = (THREADS, PREFORK)[(number + (run.stack != "embedded")) % 2]
            armed = {"CHAOS_AT": f"{place}:3:freeze", "CHAOS_ONCE": str(world.folder / f"frozen{number}")}
            frozen = Crew(world, (*pool, *options), environ=armed).ready().workers[0]
            world.facts(world.emitter(f"emitter{number}", event="single", count=events))
            until(lambda frozen=frozen: is_stopped(frozen.pid), 30.0, "the worker is frozen")  # type: ignore[misc]
            other = Crew(world, pool).ready()
            until(lambda: done(world), run.patience, "the other worker does what is not held")
            frozen.thaw()
            other.workers[0].popen.terminate()
            other.workers[0].ended(30.0)
            frozen.popen.terminate()
            frozen.ended(30.0)
        outcome.faults = {"frozen": rounds}
        world.judge(outcome, run.patience)
