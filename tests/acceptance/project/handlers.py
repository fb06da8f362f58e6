"""Handlers of every kind and outcome; each records its effect under the `key` of its emit."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

from celery.exceptions import SoftTimeLimitExceeded

from nitro import Entity, Offload, emit, on
from project.effects import FOLDER, note

LONG = 30.0
"""Seconds that a handler sleeps or waits at most, if nothing ends it before."""


class Receipt(Entity, table=True):
    """A row that a handler writes in the worker."""

    pid: int


@on("kinds", offload=True)
def plain(sender: str, key: str) -> str:
    note(key)
    return f"thanks, {sender}"


@on("kinds", offload=True)
async def coroutine(sender: str, key: str) -> None:
    await asyncio.sleep(0)
    note(key)


@on("kinds", offload=True)
def generator(sender: str, key: str) -> Iterator[int]:
    yield 1
    note(key)


@on("kinds", offload=True)
async def async_generator(sender: str, key: str) -> AsyncIterator[int]:
    yield 1
    await asyncio.sleep(0)
    note(key)


@on("recorded", offload=True)
def record(sender: str, key: str) -> None:
    Receipt(id=key, pid=os.getpid()).save()


@on("chained", offload=True)
def first(sender: str, key: str) -> None:
    note(key)
    emit("chained.further", sender, key=key)


@on("chained.further", offload=True)
def second(sender: str, key: str) -> None:
    note(key)


@on("parked", priority=1)
def gate(sender: str, key: str) -> bool:
    return sender != "cancelled"


@on("parked", offload=Offload(queue="parked"))
def parked(sender: str, key: str) -> None:
    note(key)


@on("flaky", offload={"max_retries": 3, "retry_backoff": 1, "retry_backoff_max": 1, "retry_jitter": False})
def flaky(sender: str, key: str) -> None:
    note(key)
    if len((FOLDER / key).read_text().splitlines()) < 3:
        raise ConnectionError("try again")


@on("flaky.elsewhere", offload={"queue": "single", "max_retries": 1, "retry_backoff": 1, "retry_jitter": False})
def flaky_elsewhere(sender: str, key: str) -> None:
    note(key)
    if len((FOLDER / key).read_text().splitlines()) < 2:
        raise ConnectionError("try again")


@on("hopeless", offload={"max_retries": 0})
def hopeless(sender: str, key: str) -> None:
    note(key)
    raise ConnectionError("never")


@on("mended", offload={"max_retries": 0})
def mended(sender: str, key: str) -> None:
    note(key)
    if not (FOLDER / f"{key}.go").exists():
        raise ConnectionError("not yet")


@on("expected", offload={"throws": (LookupError,)})
def expected(sender: str, key: str) -> None:
    note(key)
    raise KeyError("no such thing")


@on("stepwise", offload=True)
def stepwise(sender: str, key: str) -> Iterator[str]:
    yield "packed"
    end = time.monotonic() + LONG
    while not (FOLDER / f"{key}.go").exists() and time.monotonic() < end:
        time.sleep(0.05)
    yield "sent"


@on("deadly", offload=True)
def deadly(sender: str, key: str) -> None:
    note(key)
    if len((FOLDER / key).read_text().splitlines()) < 2:
        os.kill(os.getpid(), signal.SIGKILL)


@on("deadly.once", offload={"delivery": "at-most-once"})
def deadly_once(sender: str, key: str) -> None:
    note(key)
    os.kill(os.getpid(), signal.SIGKILL)


@on("slow.sync", offload={"queue": "single", "soft_time_limit": 1, "max_retries": 0})
def slow_sync(sender: str, key: str) -> None:
    try:
        time.sleep(LONG)
    except SoftTimeLimitExceeded:
        note(key, interrupted=True)
        raise


async def _linger(key: str) -> None:
    try:
        await asyncio.sleep(LONG)
    finally:
        note(key, interrupted="what it left running")


@on("slow.async", offload={"queue": "single", "soft_time_limit": 1, "max_retries": 0})
async def slow_async(sender: str, key: str) -> None:
    lingering = asyncio.create_task(_linger(key))
    try:
        await asyncio.sleep(LONG)
    except asyncio.CancelledError:
        note(key, interrupted=True, left=not lingering.done())
        raise


@on("slow.hard", offload={"queue": "single", "time_limit": 1, "max_retries": 0})
def slow_hard(sender: str, key: str) -> None:
    note(key)
    time.sleep(LONG)


@on("after", offload=Offload(queue="single"))
async def after(sender: str, key: str) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    note(key, running=[repr(task) for task in others], at=datetime.now(UTC).timestamp())


@on("later", offload=Offload(queue="single", countdown=3))
def later(sender: str, key: str) -> None:
    note(key, at=datetime.now(UTC).timestamp())


barrier = asyncio.Barrier(8)


@on("meeting", offload=Offload(queue="threads"))
async def meet(sender: str, key: str) -> None:
    async with asyncio.timeout(LONG / 2):
        await barrier.wait()
    note(key, loop=id(asyncio.get_running_loop()))
