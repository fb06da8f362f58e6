"""The stall of an emitter's event loop."""

from __future__ import annotations

import asyncio
import gc
import socket
from functools import partial
from statistics import median
from time import perf_counter

from celery import Celery

from benchmarks.measure import ROUNDS
from benchmarks.rows.publishing import app_on
from benchmarks.servers import QUEUE
from benchmarks.shop import KWARGS, handlers, order
from benchmarks.table import register_row
from nitro.infrastructure.events import Event, emit_async, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.publishing.publisher import publisher

EMITS = 1_000
BEAT_SECONDS = 0.001


def _app(broker: str) -> Celery:
    """Returns an app on Redis, or on a port where no server listens."""
    if broker == "healthy":
        return app_on("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = Celery("bench", broker=f"redis://127.0.0.1:{port}/0", set_as_current=False)
    return bind(app)


async def _longest_stall(event: Event) -> float:
    """Emits the event, and returns the milliseconds by which a beat was late at most."""
    longest, is_over = 0.0, False

    async def beat() -> None:
        nonlocal longest
        while not is_over:
            start = perf_counter()
            await asyncio.sleep(BEAT_SECONDS)
            longest = max(longest, perf_counter() - start - BEAT_SECONDS)

    sender = order()
    beat_task = asyncio.create_task(beat())
    for _ in range(EMITS):
        await emit_async(event, sender, **KWARGS)
    is_over = True
    await beat_task
    return longest * 1000


def _stall(broker: str) -> float:
    """Returns the median of the rounds' longest stalls."""
    app, event = _app(broker), Event("bench")
    for handler in handlers(5):
        on(event, offload=True, name=f"bench.{handler.__name__}")(handler)
    asyncio.run(_longest_stall(event))  # connects, imports and fills the caches
    gc.collect()
    gc.freeze()  # as servers do after their start: else the stall is a garbage collection of the imports
    stall = median(asyncio.run(_longest_stall(event)) for _ in range(ROUNDS))
    publisher.drain(60.0)
    if broker == "healthy":
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(QUEUE)
    return stall


for _broker, _goal in (("healthy", 5.0), ("dead", 10.0)):
    register_row(
        f"loop-{_broker}",
        16,
        f"longest stall of the loop during {EMITS:,} `emit_async` to 5, broker {_broker}",
        "",
        "",
        _goal,
        unit=" ms",
        needs=("redis",) if _broker == "healthy" else (),
        environ=(("NITRO_DB_URL", "sqlite:///bench.db"),),
    )(partial(_stall, _broker))
