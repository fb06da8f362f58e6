"""The app of the workers that are measured, with its handlers."""

from __future__ import annotations

import asyncio
import os

from celery import Celery

import benchmarks.shop  # noqa: F401  # a worker looks for classes in loaded modules only
from benchmarks.ticks import NAP, tick
from nitro import Offload, event, on
from nitro.infrastructure.offload import bind

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(task_default_queue=os.environ["BENCH_QUEUE"], task_ignore_result=True)
bind(app)

nothing, once, napping = event("bench.nothing"), event("bench.once"), event("bench.napping")


@on(nothing, offload=Offload(delivery="broker"))
def handle(sender: object, **kwargs: object) -> None:
    """Does nothing."""
    tick()


@on(once, offload=Offload(delivery="exactly-once"))
def handle_once(sender: object, **kwargs: object) -> None:
    """Does nothing, exactly once."""
    tick()


@on(napping, offload=Offload(delivery="broker"))
async def nap(sender: object, **kwargs: object) -> None:
    """Waits."""
    await asyncio.sleep(NAP)
    tick()
