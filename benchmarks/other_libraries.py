"""Clients of other libraries on Redis, each with a function that enqueues one job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from benchmarks import servers
from benchmarks.measure import TimedWork, repeat
from benchmarks.servers import REDIS
from benchmarks.shop import KWARGS

Payload = dict[str, Any]
PEER_QUEUE = f"{servers.QUEUE}-peer"


def job(order: Payload, source: str, attempt: int) -> None:
    """The job that is enqueued; no worker runs it."""


def dramatiq(payload: Payload) -> TimedWork:
    """Measures `actor.send`."""
    from dramatiq import actor
    from dramatiq.brokers.redis import RedisBroker

    queued_job = actor(job, broker=RedisBroker(url=REDIS), queue_name=PEER_QUEUE)
    return repeat(lambda: queued_job.send(payload, **KWARGS))


def huey(payload: Payload) -> TimedWork:
    """Measures a call of a task."""
    from huey import RedisHuey

    task = RedisHuey(PEER_QUEUE, url=REDIS).task()(job)
    return repeat(lambda: task(payload, **KWARGS))


def rq(payload: Payload) -> TimedWork:
    """Measures `queue.enqueue`."""
    from redis import Redis
    from rq import Queue

    queue = Queue(PEER_QUEUE, connection=Redis.from_url(REDIS))
    return repeat(lambda: queue.enqueue(job, payload, **KWARGS))


def taskiq(payload: Payload) -> TimedWork:
    """Measures `await task.kiq`."""
    from taskiq_redis import ListQueueBroker

    broker = ListQueueBroker(REDIS, queue_name=PEER_QUEUE)
    task = broker.task(job)
    return _repeat_async(broker.startup, lambda: task.kiq(payload, **KWARGS))


def arq(payload: Payload) -> TimedWork:
    """Measures `await pool.enqueue_job`."""
    from arq import create_pool
    from arq.connections import RedisSettings

    pools: list[Any] = []

    async def connect() -> None:
        pools.append(await create_pool(RedisSettings.from_dsn(REDIS), default_queue_name=PEER_QUEUE))

    return _repeat_async(connect, lambda: pools[0].enqueue_job("job", payload, **KWARGS))


def pyventus(payload: Payload) -> TimedWork:
    """Measures `emitter.emit`."""
    from pyventus.events import EventLinker, RedisEventEmitter
    from redis import Redis
    from rq import Queue

    EventLinker.subscribe("bench", event_callback=job)
    emitter = RedisEventEmitter(queue=Queue(PEER_QUEUE, connection=Redis.from_url(REDIS)))
    return repeat(lambda: emitter.emit("bench", payload, **KWARGS))


LIBRARIES = {library.__name__: library for library in (dramatiq, huey, rq, taskiq, arq, pyventus)}


def _repeat_async(connect: Callable[[], Awaitable[Any]], function: Callable[[], Awaitable[Any]]) -> TimedWork:
    """Returns work that awaits the function in a loop, on one event loop."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(connect())

    async def work(times: int) -> float:
        start = perf_counter()
        for _ in range(times):
            await function()
        return perf_counter() - start

    return lambda times: loop.run_until_complete(work(times))
