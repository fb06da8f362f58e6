"""The app of the measured Nitro workers, with its handlers."""

from __future__ import annotations

import asyncio
import os

from celery import Celery

import benchmarks.shop  # noqa: F401  # a worker looks for classes in loaded modules only
from benchmarks.counter import SLEEP_SECONDS, count
from nitro import Offload, event, on
from nitro.infrastructure.offload import bind

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(task_default_queue=os.environ["BENCH_QUEUE"], task_ignore_result=True)
bind(app)

noop, exactly_once, sleeping = event("bench.noop"), event("bench.exactly_once"), event("bench.sleeping")


@on(noop, offload=Offload(delivery="broker"))
def handle_noop(sender: object, **kwargs: object) -> None:
    """Counts its run, and does nothing else."""
    count()


@on(exactly_once, offload=Offload(delivery="exactly-once"))
def handle_exactly_once(sender: object, **kwargs: object) -> None:
    """Counts its run, exactly once."""
    count()


@on(sleeping, offload=Offload(delivery="broker"))
async def handle_sleeping(sender: object, **kwargs: object) -> None:
    """Waits on the event loop, then counts its run."""
    await asyncio.sleep(SLEEP_SECONDS)
    count()
