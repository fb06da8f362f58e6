"""Workers that are stopped one after the other, as in a deployment."""

from __future__ import annotations

from time import monotonic

from tests.chaos.crew import PREFORK, THREADS, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import until
from tests.chaos.scenarios.run import Run, scenario
from tests.chaos.world import PATIENCE, World, ready

GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL in Kubernetes."""
EVERY = 5.0


@scenario()
def rolling_restart(run: Run, outcome: Outcome) -> None:
    """Two workers that are stopped with SIGTERM in turn during the load exit in time and lose nothing."""
    outcome.handlers = 3
    events, restarts = run.size(200, 10_000), run.size(4, 50)
    with run.world() as world:
        crew = Crew(world, PREFORK, THREADS).ready()
        stop = world.folder / "stop"
        emitter = world.emitter(event="ordered", count=events, stop=str(stop), pause=0.01)
        longest = 0.0
        for number in range(restarts):
            longest = max(longest, _restart(run, world, crew, number % 2))
        stop.touch()
        world.facts(emitter, run.size(60.0, 900.0))
        outcome.faults = {"SIGTERM": restarts}
        outcome.figures["longest stop s"] = round(longest, 1)
        world.judge(outcome, run.patience)


def _restart(run: Run, world: World, crew: Crew, index: int) -> float:
    """Stops a worker once further effects exist, starts it again, and returns the seconds that it took to stop."""
    began, effects = monotonic(), world.ledger.effects()
    pause = run.size(0.0, EVERY)
    until(lambda: monotonic() - began >= pause and world.ledger.effects() >= effects + 20, PATIENCE, "20 effects more")
    worker = crew.workers[index]
    began = monotonic()
    worker.popen.terminate()
    code = worker.ended(GRACE)
    took = monotonic() - began
    assert code == 0, f"{worker.name} ended with {code}"
    fresh = crew.renew(index)
    until(lambda: ready(fresh), PATIENCE, f"{fresh.name} is ready")
    return took
