"""Handlers of every promise that the scenarios use; importing them arms the faults of the environment."""

from __future__ import annotations

import asyncio
import time

from victim import clock, faults, haste, mutations
from victim.tables import Effect

from nitro import Offload, current_delivery, on
from nitro.infrastructure.failpoints import failpoint

haste.hurry()
mutations.mutate()
clock.move()
faults.arm()

ONCE = {"delivery": "exactly-once", "ignore_result": True}
AWHILE = 0.005
"""Seconds that a handler works, so that a kill can interrupt it."""


def effect(key: str, handler: str) -> None:
    """Writes the effect of the running handler, in its transaction if it has one."""
    delivery = current_delivery()
    assert delivery is not None
    Effect(key=key, handler=handler, attempt=delivery.attempt).save()


@on("ordered", offload=Offload(**ONCE))
def stock(sender: str, key: str) -> None:
    effect(key, "stock")


@on("ordered", offload=Offload(**ONCE))
def invoice(sender: str, key: str) -> None:
    effect(key, "invoice")
    time.sleep(AWHILE)


@on("ordered", offload=Offload(**ONCE))
async def greet(sender: str, key: str) -> None:
    await asyncio.sleep(AWHILE)
    effect(key, "greet")


@on("single", offload=Offload(**ONCE))
def single(sender: str, key: str) -> None:
    effect(key, "single")


@on("loose", offload=Offload(delivery="broker", ignore_result=True))
def loose(sender: str, key: str) -> None:
    failpoint("working")
    time.sleep(AWHILE)
    effect(key, "loose")


@on("delayed", offload=Offload(countdown=0.02, **ONCE))
def delayed(sender: str, key: str) -> None:
    effect(key, "delayed")


@on("parked", offload=Offload(queue="parked", countdown=0.1, **ONCE))
def parked(sender: str, key: str) -> None:
    effect(key, "parked")
