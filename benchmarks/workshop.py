"""The app of the workers that are measured: handlers, and the tasks that people would write instead."""

from __future__ import annotations

import asyncio
import os
import time

from celery import Celery
from sqlalchemy import text

import benchmarks.shop  # noqa: F401  # a worker looks for classes in loaded modules only
from nitro import Offload, event, on
from nitro.infrastructure.database import engine
from nitro.infrastructure.offload import bind

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(task_default_queue=os.environ["BENCH_QUEUE"], task_ignore_result=True)
bind(app)

NAP = 0.05
"""Seconds that the handlers and tasks of the row about waiting wait."""

_ticks = os.open(os.environ["BENCH_TICKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def tick() -> None:
    """Say that one more is done, and when it began."""
    os.write(_ticks, b"%020d\n" % time.monotonic_ns())


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


@app.task(acks_late=True)
def plain(order: dict[str, object], **kwargs: object) -> None:
    """Does nothing."""
    tick()


@app.task(acks_late=True)
def plain_once(key: str, order: dict[str, object], **kwargs: object) -> None:
    """Does nothing, exactly once: it counts its attempt, then takes its key and works in one transaction."""
    with engine().begin() as connection:
        connection.execute(text("UPDATE attempts SET count = count + 1 WHERE key = :key"), {"key": key})
    with engine().begin() as connection:
        taken = "INSERT INTO done (key) VALUES (:key) ON CONFLICT DO NOTHING"
        if connection.execute(text(taken), {"key": key}).rowcount:
            tick()


@app.task(acks_late=True)
def plain_nap(order: dict[str, object], **kwargs: object) -> None:
    """Waits."""
    time.sleep(NAP)
    tick()
