"""Several relays at once."""

from __future__ import annotations

from tests.chaos.outcome import Outcome
from tests.chaos.processes import until
from tests.chaos.scenarios.run import Run, scenario

QUEUE = "parked"
RELAYS = 4
LOCKED = "database is locked"
LISTENS = "relays until SIGINT or SIGTERM"


@scenario("embedded", "redis", "rabbitmq")
def four_relays(run: Run, outcome: Outcome) -> None:
    """Four relays publish each row of a backlog once, and none fails on a lock."""
    outcome.handlers = 1
    events = run.size(400, 10_000)
    with run.world() as world:
        world.environ.pop("CHAOS_HASTE", None)
        world.facts(world.emitter(event="parked", count=events), 600.0)
        relays = [world.start(f"relay{number}", "celery", "-A", "tasks", "nitro", "relay") for number in range(RELAYS)]
        waiting = "SELECT count(*) FROM nitro_delivery WHERE state = 'waiting'"
        until(lambda: world.ledger.number(waiting) == 0, run.size(60.0, 300.0), "all is published")
        until(lambda: world.messages.size(QUEUE) >= events, 30.0, "all is in the queue")
        until(lambda: all(LISTENS in relay.text for relay in relays), 30.0, "also the last relay is there")
        for relay in relays:
            relay.popen.terminate()
        codes = [relay.ended(30.0) for relay in relays]
        outcome.events, outcome.faults = events, {"relays at once": RELAYS}
        again = world.ledger.number("SELECT count(*) FROM nitro_delivery WHERE publications <> 1")
        size = world.messages.size(QUEUE)
        outcome.lost, outcome.double = max(0, events - size), max(0, size - events, again)
        outcome.must(again == 0, f"{again} rows were not published exactly once")
        outcome.must(size == events, f"{size} messages for {events} rows")
        outcome.must(not any(LOCKED in relay.text for relay in relays), LOCKED)
        outcome.must(codes == [0] * RELAYS, f"relays ended with {codes}")
