"""One job in the queue of each other library on Redis, with a client of its own: what one `send` costs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from benchmarks import servers
from benchmarks.measure import Work, looped
from benchmarks.servers import REDIS
from benchmarks.shop import KWARGS

Payload = dict[str, Any]
QUEUE = f"{servers.QUEUE}-peer"


def job(order: Payload, source: str, attempt: int) -> None:
    """What is queued; nobody runs it."""


def dramatiq(payload: Payload) -> Work:
    """`actor.send`."""
    from dramatiq import actor
    from dramatiq.brokers.redis import RedisBroker

    queued = actor(job, broker=RedisBroker(url=REDIS), queue_name=QUEUE)
    return looped(lambda: queued.send(payload, **KWARGS))


def huey(payload: Payload) -> Work:
    """A call of a task."""
    from huey import RedisHuey

    queued = RedisHuey(QUEUE, url=REDIS).task()(job)
    return looped(lambda: queued(payload, **KWARGS))


def rq(payload: Payload) -> Work:
    """`queue.enqueue`."""
    from redis import Redis
    from rq import Queue

    queue = Queue(QUEUE, connection=Redis.from_url(REDIS))
    return looped(lambda: queue.enqueue(job, payload, **KWARGS))


def taskiq(payload: Payload) -> Work:
    """`await task.kiq`."""
    from taskiq_redis import ListQueueBroker

    broker = ListQueueBroker(REDIS, queue_name=QUEUE)
    queued = broker.task(job)
    return _awaited(broker.startup, lambda: queued.kiq(payload, **KWARGS))


def arq(payload: Payload) -> Work:
    """`await pool.enqueue_job`."""
    from arq import create_pool
    from arq.connections import RedisSettings

    pools: list[Any] = []

    async def connect() -> None:
        pools.append(await create_pool(RedisSettings.from_dsn(REDIS), default_queue_name=QUEUE))

    return _awaited(connect, lambda: pools[0].enqueue_job("job", payload, **KWARGS))


def pyventus(payload: Payload) -> Work:
    """`emitter.emit`."""
    from pyventus.events import EventLinker, RedisEventEmitter
    from redis import Redis
    from rq import Queue

    EventLinker.subscribe("bench", event_callback=job)
    emitter = RedisEventEmitter(queue=Queue(QUEUE, connection=Redis.from_url(REDIS)))
    return looped(lambda: emitter.emit("bench", payload, **KWARGS))


PEERS = {peer.__name__: peer for peer in (dramatiq, huey, rq, taskiq, arq, pyventus)}


def _awaited(begin: Callable[[], Awaitable[Any]], once: Callable[[], Awaitable[Any]]) -> Work:
    """What is awaited again and again on one loop."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())

    async def repeated(times: int) -> float:
        began = perf_counter()
        for _ in range(times):
            await once()
        return perf_counter() - began

    return lambda times: loop.run_until_complete(repeated(times))
