"""The hand-written tasks that Nitro is compared with, in a Celery app that has the same settings."""

from __future__ import annotations

import os
import time

from celery import Celery
from sqlalchemy import create_engine

from benchmarks import exactly_once_by_hand
from benchmarks.counter import SLEEP_SECONDS, count
from nitro.infrastructure.offload.celery_defaults import configure_own_app

app = configure_own_app(Celery("bench-celery", broker=os.environ["BENCH_BROKER"], set_as_current=False))
app.conf.update(task_default_queue=f"{os.environ['BENCH_QUEUE']}-celery", task_ignore_result=True)
engine = create_engine(os.environ["NITRO_DB_URL"])


@app.task
def noop(order: dict[str, object], **kwargs: object) -> None:
    """Counts its run, and does nothing else."""
    count()


@app.task
def noop_exactly_once(key: str, order: dict[str, object], **kwargs: object) -> None:
    """Counts its run, exactly once."""
    exactly_once_by_hand.run_once(engine, key, count)


@app.task
def sleeping(order: dict[str, object], **kwargs: object) -> None:
    """Blocks its thread, then counts its run."""
    time.sleep(SLEEP_SECONDS)
    count()
