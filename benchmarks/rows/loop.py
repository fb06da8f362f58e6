"""The event loop of an emitter."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from time import perf_counter

from celery import Celery

from benchmarks.rows.publishing import app_on
from benchmarks.servers import QUEUE
from benchmarks.shop import KWARGS, handlers, order
from benchmarks.table import row
from nitro.infrastructure.events import Event, emit_async, on
from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.courier import courier

EMITS = 1_000
BEAT = 0.001


def _app(broker: str) -> Celery:
    """On Redis, or on a port where nobody listens."""
    if broker == "healthy":
        return app_on("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = Celery("bench", broker=f"redis://127.0.0.1:{port}/0", set_as_current=False)
    return bind(app)


async def _longest_stall(event: Event) -> float:
    """Milliseconds by which a beat was late at most while the event was emitted."""
    longest, over = 0.0, False

    async def beat() -> None:
        nonlocal longest
        while not over:
            began = perf_counter()
            await asyncio.sleep(BEAT)
            longest = max(longest, perf_counter() - began - BEAT)

    sold = order()
    await emit_async(event, sold, **KWARGS)
    beating = asyncio.create_task(beat())
    for _ in range(EMITS):
        await emit_async(event, sold, **KWARGS)
    over = True
    await beating
    return longest * 1000


def _stall(broker: str) -> float:
    app, event = _app(broker), Event("bench")
    for handler in handlers(5):
        on(event, offload=True, name=f"bench.{handler.__name__}")(handler)
    stalled = asyncio.run(_longest_stall(event))
    courier.drain(60.0)
    if broker == "healthy":
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(QUEUE)
    return stalled


for _broker, _goal in (("healthy", 5.0), ("dead", 10.0)):
    row(
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
