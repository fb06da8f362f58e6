"""Emits to offloaded handlers, beside hand-written `.delay()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from celery import Celery

from benchmarks.measure import Pair, TimedWork, repeat, side_by_side
from benchmarks.servers import QUEUE, RABBITMQ, REDIS
from benchmarks.shop import KWARGS, dump, handlers, order
from benchmarks.table import register_row
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import bind

BROKERS = {"redis": REDIS, "rabbitmq": RABBITMQ, "memory": "memory://"}


def app_on(broker: str) -> Celery:
    """Returns an app without results; both sides use it."""
    app = Celery("bench", broker=BROKERS[broker], set_as_current=False)
    app.conf.update(task_default_queue=QUEUE, task_ignore_result=True)
    return bind(app)


@contextmanager
def empty_queue(app: Celery) -> Iterator[Callable[[], None]]:
    """Declares the queue, yields a function that purges it, and deletes the queue after the block."""
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        app.amqp.queues[QUEUE].bind(channel).declare()
        yield lambda: channel.queue_purge(QUEUE)
        channel.queue_delete(QUEUE)


def _publishing(broker: str, count: int, delivery: str, burst: int) -> Pair:
    app, event, sender = app_on(broker), Event("bench"), order()
    for handler in handlers(count):
        on(event, offload={"delivery": delivery}, name=f"bench.{handler.__name__}")(handler)
    tasks = [app.task(handler, name=f"plain.{handler.__name__}") for handler in handlers(count)]

    def by_hand() -> None:
        dumped = dump(sender)
        for task in tasks:
            task.delay(dumped, **KWARGS)

    with empty_queue(app) as purge:

        def after_purge(function: Callable[[], object]) -> TimedWork:
            repeated = repeat(function)

            def work(times: int) -> float:
                purge()
                return repeated(times)

            return work

        return side_by_side(after_purge(lambda: emit(event, sender, **KWARGS)), after_purge(by_hand), times=burst)


def _row(number: int, broker: str, count: int, delivery: str, goal: float) -> None:
    what = f"`emit`, {count} offloaded, {broker}, `{delivery}`"
    peer = f"{count} `.delay()`"
    needs = () if broker == "memory" else (broker,)
    register_row(f"{broker}-{count}-{delivery}", number, what, peer, "celery", goal, needs=needs)(
        partial(_publishing, broker, count, delivery, burst=300)
    )


_row(3, "redis", 5, "broker", 0.15)
_row(4, "rabbitmq", 5, "at-most-once", 0.20)
_row(5, "rabbitmq", 5, "broker", 1.0)
_row(6, "memory", 5, "broker", 0.12)
_row(7, "redis", 1, "broker", 0.50)
_row(7, "rabbitmq", 1, "at-most-once", 0.35)
