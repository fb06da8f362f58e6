"""What a worker does with its messages, beside the tasks that people would write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from benchmarks import once
from benchmarks.measure import Pair, side_by_side
from benchmarks.servers import QUEUE, REDIS, database
from benchmarks.shop import KWARGS, dump, order
from benchmarks.staff import Staff, staff
from benchmarks.table import row
from nitro.infrastructure.database import create_tables, engine
from nitro.infrastructure.events import emit
from nitro.infrastructure.offload.publishing.publisher import publisher

Send = Callable[[], object]


@contextmanager
def workshops(*arguments: str) -> Iterator[tuple[tuple[Staff, ModuleType], tuple[Staff, ModuleType]]]:
    """Two workers on Redis and PostgreSQL, each with its module: ours, and one with tasks made by hand."""
    with ExitStack() as stack:
        place = stack.enter_context(database("postgresql"))
        ticks = Path("ticks").absolute()
        os.environ |= {
            "BENCH_BROKER": REDIS,
            "BENCH_QUEUE": QUEUE,
            "BENCH_TICKS": str(ticks),
            "NITRO_DB_URL": place.url.render_as_string(hide_password=False),
        }
        from benchmarks import handmade, workshop

        create_tables()
        ours, theirs = (stack.enter_context(staff(each, ticks, *arguments)) for each in (workshop, handmade))
        yield (ours, workshop), (theirs, handmade)
        for each in (workshop, handmade):
            with each.app.connection_for_write() as connection:
                connection.default_channel.queue_delete(each.app.conf.task_default_queue)
        handmade.engine.dispose()
        engine().dispose()


def _throughput(ours: str, theirs: str, count: int, *arguments: str) -> Pair:
    """Seconds a message of a handler and of a task."""
    sold = order()
    with workshops(*arguments) as ((crew, workshop), (others, handmade)):
        event, task = getattr(workshop, ours), getattr(handmade, theirs)

        def by_hand() -> None:
            task.delay(dump(sold), **KWARGS)

        return side_by_side(crew.work(lambda: emit(event, sold, **KWARGS)), others.work(by_hand), times=count, rounds=5)


row(
    "worker",
    11,
    "worker, no-op handlers, prefork `-c 2`, Redis",
    "plain tasks",
    "celery",
    1 / 0.95,
    needs=("redis", "postgresql"),
)(partial(_throughput, "nothing", "plain", 2_000, "-c", "2"))
row(
    "worker-async",
    13,
    "1,000 handlers that await 50 ms, `-P threads -c 100`",
    "tasks that sleep",
    "celery",
    1.15,
    needs=("redis", "postgresql"),
)(partial(_throughput, "napping", "plain_nap", 1_000, "-P", "threads", "-c", "100"))


@row(
    "worker-once",
    12,
    "worker, `exactly-once`, prefork `-c 2`, PostgreSQL",
    "a task that does it by hand",
    "celery",
    1.0,
    needs=("redis", "postgresql"),
)
def exactly_once() -> Pair:
    """The task counts its attempt and takes a key, each in a transaction."""
    sold = order()
    with workshops("-c", "2") as ((crew, workshop), (others, handmade)):
        with engine().begin() as connection:
            once.create(connection)

        def by_hand() -> None:
            key = str(uuid4())
            with engine().begin() as connection:
                once.expect(connection, [key])
            handmade.plain_once.delay(key, dump(sold), **KWARGS)

        def emitted() -> None:
            emit(workshop.once, sold, **KWARGS)
            assert publisher.drain(60.0)

        return side_by_side(crew.work(emitted), others.work(by_hand), times=1_000, rounds=5)


@row(
    "latency",
    14,
    "from `emit` to the handler's start on an idle worker, Redis",
    "`.delay()`",
    "celery",
    1.0,
    needs=("redis", "postgresql"),
)
def latency() -> Pair:
    """One message at a time."""
    sold = order()
    with workshops("-c", "2") as ((crew, workshop), (others, handmade)):

        def by_hand() -> Any:
            return handmade.plain.delay(dump(sold), **KWARGS)

        ours = crew.latency(lambda: emit(workshop.nothing, sold, **KWARGS))
        return side_by_side(ours, others.latency(by_hand), times=50)
