"""The tasks that people would write instead, with an app of their own that has the same settings."""

from __future__ import annotations

import os
import time

from celery import Celery
from sqlalchemy import create_engine

from benchmarks import once
from benchmarks.ticks import NAP, tick
from nitro.infrastructure.offload.celery_defaults import configure_own_app

app = configure_own_app(Celery("handmade", broker=os.environ["BENCH_BROKER"], set_as_current=False))
app.conf.update(task_default_queue=f"{os.environ['BENCH_QUEUE']}-handmade", task_ignore_result=True)
engine = create_engine(os.environ["NITRO_DB_URL"])


@app.task
def plain(order: dict[str, object], **kwargs: object) -> None:
    """Does nothing."""
    tick()


@app.task
def plain_once(key: str, order: dict[str, object], **kwargs: object) -> None:
    """Does nothing, exactly once."""
    once.run(engine, key, tick)


@app.task
def plain_nap(order: dict[str, object], **kwargs: object) -> None:
    """Waits."""
    time.sleep(NAP)
    tick()
