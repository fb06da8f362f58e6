"""Workers that get messages of a handler that they do not know."""

from __future__ import annotations

from tests.chaos.crew import PREFORK, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import until
from tests.chaos.scenarios.run import Run, scenario

KNOWS = {"NITRO_HANDLERS": "victim.handlers,victim.late"}


@scenario()
def without_handler(run: Run, outcome: Outcome) -> None:
    """Workers without the handler drop no message, and a worker with the handler runs them all."""
    outcome.handlers = 1
    events = run.size(40, 200)
    with run.world() as world:
        strangers = Crew(world, PREFORK).ready()
        world.facts(world.emitter(event="late", count=events))
        taken = "SELECT count(*) FROM nitro_delivery WHERE error LIKE 'unknown to the worker%'"
        until(lambda: world.ledger.number(taken) == events, run.patience, "each was taken by a stranger")
        kept = world.ledger.number("SELECT count(*) FROM nitro_delivery WHERE state IN ('waiting', 'queued', 'dead')")
        outcome.must(kept == events, f"only {kept} of {events} are kept")
        strangers.workers[0].popen.terminate()
        strangers.workers[0].ended(30.0)
        Crew(world, PREFORK, environ=KNOWS).ready()
        if world.ledger.number("SELECT count(*) FROM nitro_delivery WHERE state = 'dead'"):
            world.run("replay", "celery", "-A", "tasks", "nitro", "outbox", "replay", "--yes")
        world.judge(outcome, run.patience)
        outcome.faults = {"messages taken by a stranger": events}
