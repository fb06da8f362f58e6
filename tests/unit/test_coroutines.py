"""A thread that waits for a coroutine on the worker's loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from nitro.infrastructure.events.background import LoopThread
from nitro.infrastructure.worker.loop import _CoroutineRun

PATIENCE = 20.0


@pytest.fixture
def loop() -> asyncio.AbstractEventLoop:
    """An event loop on a thread of its own."""
    return LoopThread("loop-of-a-test").ensure_running()


class Interrupting:
    """A lock whose first acquire raises a soft time limit, as a signal does; a second acquire would wait for ever."""

    def __init__(self, lock: Any) -> None:
        self._lock, self._taken = lock, False

    def acquire(self) -> None:
        assert not self._taken, "waits for ever"
        assert self._lock.acquire(timeout=PATIENCE)
        self._taken = True
        raise SoftTimeLimitExceeded

    def release(self) -> None:
        self._lock.release()


def test_a_limit_that_comes_as_the_coroutine_ends_is_raised(loop: asyncio.AbstractEventLoop) -> None:
    """The limit is raised although the coroutine's end was signalled already."""
    run = _CoroutineRun(loop)
    run._finished = Interrupting(run._finished)  # type: ignore[assignment]  # in its place
    loop.call_soon_threadsafe(run.begin, asyncio.sleep(0))
    with pytest.raises(SoftTimeLimitExceeded):
        run.result()
