"""The scenarios by name; each makes a world, injects faults, and judges the effects."""

from __future__ import annotations

from tests.chaos.scenarios import (
    brokers,
    clocks,
    databases,
    emitters,
    external,
    frozen,
    promise,
    relays,
    restarts,
    strangers,
    toxic,
    workers,
)
from tests.chaos.scenarios.run import SCENARIOS, Run, Scenario

__all__ = ["SCENARIOS", "Run", "Scenario"]

_ = (brokers, clocks, databases, emitters, external, frozen, promise, relays, restarts, strangers, toxic, workers)
