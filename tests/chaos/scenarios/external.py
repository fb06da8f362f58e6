"""Workers that are killed in the middle of an effect outside of the database."""

from __future__ import annotations

from tests.chaos.crew import PREFORK, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import until
from tests.chaos.scenarios.run import Run, scenario


@scenario()
def external_effect(run: Run, outcome: Outcome) -> None:
    """Each call of a delivery has the same idempotency key, and the delivery is done in the end."""
    outcome.handlers = 1
    events = run.size(24, 500)
    with run.world(handlers="victim.handlers,victim.charges") as world:
        charges = world.folder / "charges"
        charges.mkdir()
        crew = Crew(world, PREFORK, PREFORK).ready()
        world.facts(world.emitter(event="charged", count=events))
        groups = 0

        def rests() -> bool:
            nonlocal groups
            groups += crew.tend()
            return world.ledger.open() == 0

        until(rests, run.size(60.0, 1800.0), "the outbox comes to rest")
        world.judge(outcome, run.patience)
        outcome.faults = {"killed first attempts": events, "whole workers": groups}
        keys = {str(id_) for (id_,) in world.ledger.rows("SELECT id FROM committed")}
        called = [[line.split() for line in file.read_text().splitlines()] for file in charges.iterdir()]
        reached = [calls[0][0] for calls in called]
        outcome.lost = len(keys - set(reached)) + outcome.figures.get("dead", 0)
        outcome.figures["most calls of a key"] = max(map(len, called), default=0)
        outcome.must(outcome.lost == 0, f"{outcome.lost} are not done")
        outcome.must(len(called) == events, f"{len(called)} idempotency keys for {events} deliveries")
        outcome.must(all(len({key for key, _ in calls}) == 1 for calls in called), "a key was used for two deliveries")
        outcome.must(all(len(calls) > 1 for calls in called), "an attempt that died was the last")
