"""`delivery="broker"` on RabbitMQ loses no confirmed message, without a row."""

from __future__ import annotations

from contextlib import suppress

from tests.chaos.crew import PREFORK, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import NotInTime, until
from tests.chaos.scenarios.run import Run, scenario
from tests.chaos.world import QUEUE


@scenario("rabbitmq")
def broker_promise(run: Run, outcome: Outcome) -> None:
    """A deleted queue and killed workers lose no message; double effects are allowed."""
    outcome.handlers = 1
    events, kills = run.size(120, 2_000), run.size(3, 20)
    with run.world() as world:
        gate = world.folder / "gate"
        emitter = world.emitter(event="", loose=1, count=events, gate=str(gate))
        crew = Crew(world, PREFORK).ready()
        until(lambda: world.ledger.effects() == 1, 30.0, "the first event is done")
        crew.workers[0].popen.terminate()
        crew.workers[0].ended(30.0)
        world.messages.delete(QUEUE)
        gate.touch()
        world.facts(emitter)
        crew = Crew(world, PREFORK, environ={"CHAOS_AT": "working:8:group"})
        with suppress(NotInTime):
            until(lambda: crew.tend() >= 0 and crew.deaths >= kills, run.patience, f"{kills} workers have died")
        outcome.must(crew.deaths >= kills, f"only {crew.deaths} workers have died")
        crew.disarm()

        def done() -> bool:
            crew.tend()
            return not world.ledger.balance().lost

        with suppress(NotInTime):
            until(done, run.patience, "all are done")
        balance = world.ledger.balance()
        outcome.events, outcome.lost = balance.events, len(balance.lost)
        outcome.figures = {"double, which is allowed": balance.double}
        outcome.must(not balance.lost, f"lost: {balance.lost[:3]}")
        outcome.faults = {"queue deleted": 1, "workers killed": kills}
