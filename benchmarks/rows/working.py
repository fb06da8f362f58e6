"""Workers that run handlers, beside workers that run hand-written tasks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from benchmarks import exactly_once_by_hand
from benchmarks.measure import Pair, side_by_side
from benchmarks.servers import QUEUE, REDIS, database
from benchmarks.shop import KWARGS, dump, order
from benchmarks.table import register_row
from benchmarks.worker_process import WorkerProcess, start_worker
from nitro.infrastructure.database import create_tables, engine
from nitro.infrastructure.events import emit
from nitro.infrastructure.offload.publishing.publisher import publisher

Worker = tuple[WorkerProcess, ModuleType]
"""A worker, and the module of its app."""


@contextmanager
def worker_pair(*arguments: str) -> Iterator[tuple[Worker, Worker]]:
    """Starts two workers on Redis and PostgreSQL: of `nitro_app`, and of `celery_app` with hand-written tasks."""
    with ExitStack() as stack:
        bench_engine = stack.enter_context(database("postgresql"))
        counter = Path("counter").absolute()
        os.environ |= {
            "BENCH_BROKER": REDIS,
            "BENCH_QUEUE": QUEUE,
            "BENCH_COUNTER": str(counter),
            "NITRO_DB_URL": bench_engine.url.render_as_string(hide_password=False),
        }
        from benchmarks import celery_app, nitro_app

        create_tables()
        ours, theirs = (stack.enter_context(start_worker(app, counter, *arguments)) for app in (nitro_app, celery_app))
        yield (ours, nitro_app), (theirs, celery_app)
        for module in (nitro_app, celery_app):
            with module.app.connection_for_write() as connection:
                connection.default_channel.queue_delete(module.app.conf.task_default_queue)
        celery_app.engine.dispose()
        engine().dispose()


def _throughput(event_name: str, task_name: str, count: int, *arguments: str) -> Pair:
    """Measures the seconds for one message of a handler and of a task."""
    sender = order()
    with worker_pair(*arguments) as ((ours, nitro_app), (theirs, celery_app)):
        event, task = getattr(nitro_app, event_name), getattr(celery_app, task_name)

        def by_hand() -> None:
            task.delay(dump(sender), **KWARGS)

        return side_by_side(
            ours.throughput(lambda: emit(event, sender, **KWARGS)), theirs.throughput(by_hand), times=count, rounds=5
        )


register_row(
    "worker",
    11,
    "worker, no-op handlers, prefork `-c 2`, Redis",
    "plain tasks",
    "celery",
    1 / 0.95,
    needs=("redis", "postgresql"),
)(partial(_throughput, "noop", "noop", 2_000, "-c", "2"))
register_row(
    "worker-async",
    13,
    "1,000 handlers that await 50 ms, `-P threads -c 100`",
    "tasks that sleep",
    "celery",
    1.15,
    needs=("redis", "postgresql"),
)(partial(_throughput, "sleeping", "sleeping", 1_000, "-P", "threads", "-c", "100"))


@register_row(
    "worker-once",
    12,
    "worker, `exactly-once`, prefork `-c 2`, PostgreSQL",
    "a task that does it by hand",
    "celery",
    1.0,
    needs=("redis", "postgresql"),
)
def exactly_once() -> Pair:
    """Measures an exactly-once handler; the peer counts its attempt and takes a key, each in a transaction."""
    sender = order()
    with worker_pair("-c", "2") as ((ours, nitro_app), (theirs, celery_app)):
        with engine().begin() as connection:
            exactly_once_by_hand.create_tables(connection)

        def by_hand() -> None:
            key = str(uuid4())
            with engine().begin() as connection:
                exactly_once_by_hand.insert_keys(connection, [key])
            celery_app.noop_exactly_once.delay(key, dump(sender), **KWARGS)

        def emit_and_drain() -> None:
            emit(nitro_app.exactly_once, sender, **KWARGS)
            assert publisher.drain(60.0)

        return side_by_side(ours.throughput(emit_and_drain), theirs.throughput(by_hand), times=1_000, rounds=5)


@register_row(
    "latency",
    14,
    "from `emit` to the handler's start on an idle worker, Redis",
    "`.delay()`",
    "celery",
    1.0,
    needs=("redis", "postgresql"),
)
def latency() -> Pair:
    """Measures one message at a time."""
    sender = order()
    with worker_pair("-c", "2") as ((ours, nitro_app), (theirs, celery_app)):

        def by_hand() -> Any:
            return celery_app.noop.delay(dump(sender), **KWARGS)

        emit_to_start = ours.latency(lambda: emit(nitro_app.noop, sender, **KWARGS))
        return side_by_side(emit_to_start, theirs.latency(by_hand), times=50)
