"""Children that die at a failpoint: `python -m victim.nursery WHAT PLACE KILLS EVENT SEED` prints how many did.

The parent imports everything once and opens nothing; each child is armed and emits, or relays, until it kills itself.
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
"""Seconds that a child may live."""
MOST_TIMES = {"emitter": 5, "relay": 2}
"""The latest time that a place is reached at which a child dies."""


def emitting(event: str) -> None:
    """Emit until this process dies of it; not so quickly that all leave as one batch."""
    end = monotonic() + MOST
    while monotonic() < end:
        tracked(event, Facts())
        sleep(LOOK_AGAIN)


def relaying(event: str) -> None:
    """Leave something to a relay, and be the relay that dies of it."""
    relay, end = Relay(current_app()), monotonic() + MOST
    while monotonic() < end:
        tracked(event, Facts())
        sleep(LOOK_AGAIN)
        relay.step()


WORK = {"emitter": emitting, "relay": relaying}


def bear(what: str, place: str, times: int, event: str) -> bool:
    """Whether a child with this fault died of it."""
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
    """Have as many children as wanted; print how many died as they should."""
    chance = random.Random(seed)
    print(sum(bear(what, place, chance.randint(1, MOST_TIMES[what]), event) for _ in range(int(kills))))


if __name__ == "__main__":
    main(*sys.argv[1:])
