"""Clocks that are wrong and are set during the load."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.crew import PREFORK, THREADS, Crew
from tests.chaos.outcome import Outcome
from tests.chaos.processes import until
from tests.chaos.scenarios.run import Run, scenario
from tests.chaos.world import World

HOUR = 3600


@scenario("embedded", "redis")
def clock(run: Run, outcome: Outcome) -> None:
    """Emitter and workers whose clocks differ by hours and are set again, with kills, cause each effect once."""
    outcome.handlers = 3
    events = run.size(200, 200)
    with run.world() as world:
        clocks = {name: world.folder / f"clock-{name}" for name in ("emitter", "fast", "slow")}
        _set(clocks, emitter=HOUR, fast=HOUR, slow=-HOUR)
        fast = Crew(world, THREADS, environ={"CHAOS_CLOCK": str(clocks["fast"])}).ready()
        slow = _slow(world, clocks["slow"])
        world.environ["CHAOS_CLOCK"] = str(clocks["emitter"])
        emitter = world.emitter(event="ordered", count=events, pause=0.01)
        _done(world, events)
        _set(clocks, emitter=-HOUR, fast=-HOUR, slow=HOUR)
        slow.kill_main(run.chance)
        _done(world, 2 * events)
        _set(clocks, emitter=0, fast=HOUR, slow=0)
        fast.kill_main(run.chance)
        world.facts(emitter)
        outcome.faults = {"clocks set": 9, "killed": 2}
        world.judge(outcome, run.patience)


def _set(clocks: dict[str, Path], **seconds: int) -> None:
    for name, by in seconds.items():
        whole = clocks[name].with_suffix(".new")
        whole.write_text(str(by))
        whole.rename(clocks[name])


def _slow(world: World, clock: Path) -> Crew:
    return Crew(world, PREFORK, environ={"CHAOS_CLOCK": str(clock)}).ready()


def _done(world: World, effects: int) -> None:
    until(lambda: world.ledger.effects() >= effects, 60.0, f"{effects} effects")
