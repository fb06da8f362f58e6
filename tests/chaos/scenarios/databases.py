"""A database that emitters, relays and workers cannot reach for a while."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep

from tests.chaos.crew import PREFORK, THREADS, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import NotInTime, until
from tests.chaos.scenarios.run import Run, scenario
from tests.chaos.servers import PostgreSQL
from tests.chaos.world import World

BETWEEN = 120.0


@scenario("redis", "rabbitmq")
def database_away(run: Run, outcome: Outcome) -> None:
    """Emits of an outage raise and commit nothing; committed deliveries are done once the database is back."""
    outcome.handlers = 3
    events, away = run.size(200, 1_000), run.size(4.0, 30.0)
    with run.world() as world:
        crew = Crew(world, PREFORK, THREADS).ready()
        stop = world.folder / "stop"
        emitter = world.emitter(event="ordered", count=events, stop=str(stop), pause=0.02)
        relay = world.start("relay", "celery", "-A", "tasks", "nitro", "relay")
        until(lambda: "relays until" in relay.text, BETWEEN, "the relay has begun")
        for name, fault in _faults(world, away).items():
            _go_on(world)
            fault()
            outcome.faults[name] = 1
        _go_on(world)
        stop.touch()
        facts = world.facts(emitter, run.size(60.0, 300.0))
        outcome.must(relay.alive, "the relay ended")
        outcome.must(all(worker.alive for worker in crew.workers), "a worker ended")
        world.judge(outcome, run.patience)
        committed = {str(id_) for (id_,) in world.ledger.rows("SELECT id FROM committed")}
        outcome.figures |= {"raised": len(facts["raised"]), "longest emit s": round(facts["longest"], 1)}
        outcome.figures["raised though committed"] = len(committed & set(facts["raised"]))
        outcome.must(bool(facts["raised"]), "no emit has raised")
        outcome.must(set(facts["committed"]) <= committed, "an emit that returned is not committed")


def _faults(world: World, away: float) -> dict[str, Callable[[], None]]:
    server = world.database
    assert isinstance(server, PostgreSQL)

    def kill() -> None:
        server.kill()
        sleep(away)
        server.start()

    def freeze() -> None:
        server.freeze()
        sleep(away)
        server.thaw()

    return {"killed": kill, "frozen": freeze}


def _go_on(world: World) -> None:
    """Waits until more effects exist than now."""
    effects = world.ledger.effects()
    try:
        until(lambda: world.ledger.effects() > effects + 10, BETWEEN, "more is done")
    except NotInTime as error:
        raise NotInTime(f"{error}; open: {world.ledger.open()}") from error
