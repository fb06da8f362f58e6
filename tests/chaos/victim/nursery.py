"""Children that are killed at a failpoint: `python -m victim.nursery WHAT PLACE KILLS EVENT SEED` prints their number.

The parent imports everything once and opens no connection; each child arms its fault and emits, or relays, until it is
killed.
"""

from __future__ import annotations

import os
import random
import sys
from time import monotonic, sleep

from victim import faults
from victim.emitter import Facts, tracked

from nitro.infrastructure.offload.app import current_app
from nitro.infrastructure.outbox.relay import Relay

LOOK_AGAIN = 0.03
MOST = 30.0
"""Seconds that a child may run."""
MOST_TIMES = {"emitter": 5, "relay": 2}
"""The highest count of a failpoint at which a child is killed."""


def emitting(event: str) -> None:
    """Emits until this process is killed; the pause keeps the messages from leaving as one batch."""
    end = monotonic() + MOST
    while monotonic() < end:
        tracked(event, Facts())
        sleep(LOOK_AGAIN)


def relaying(event: str) -> None:
    """Emits deliveries, and relays them until this process is killed."""
    relay, end = Relay(current_app()), monotonic() + MOST
    while monotonic() < end:
        tracked(event, Facts())
        sleep(LOOK_AGAIN)
        relay.step()


WORK = {"emitter": emitting, "relay": relaying}


def bear(what: str, place: str, times: int, event: str) -> bool:
    """Forks a child with this fault, and returns whether the fault killed it."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.WIFSIGNALED(status)
    code = 1
    try:
        os.environ["CHAOS_AT"] = f"{place}:{times}:kill"
        faults.arm()
        WORK[what](event)
        code = 0
    finally:
        os._exit(code)


def main(what: str, place: str, kills: str, event: str, seed: str) -> None:
    """Forks so many children, and prints the number of those that were killed."""
    chance = random.Random(seed)
    print(sum(bear(what, place, chance.randint(1, MOST_TIMES[what]), event) for _ in range(int(kills))))


if __name__ == "__main__":
    main(*sys.argv[1:])
