"""Greenlets: with `threading` patched by gevent or eventlet, many Python threads share one thread of the system."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from weakref import WeakKeyDictionary


def is_threading_patched() -> bool:
    """Whether a thread that Python starts is a greenlet, so that a call that waits in C stops all of them."""
    monkey, patcher = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    return (monkey is not None and monkey.is_module_patched("threading")) or (
        patcher is not None and patcher.is_monkey_patched("thread")
    )


def is_gevent_timeout(error: BaseException) -> bool:
    """Whether the error is gevent's Timeout, which is not an `Exception`."""
    gevent = sys.modules.get("gevent")
    return gevent is not None and isinstance(error, gevent.Timeout)


class _LoopSwitcher:
    """A trace function for greenlet that gives each greenlet its own running event loop.

    asyncio keeps one running loop for each thread of the system. Without the switcher a greenlet would see the loop
    that runs in another greenlet, and a loop that continues after another one has run would not be set as running.
    """

    def __init__(self, previous_trace: Callable[[str, object], object] | None) -> None:
        self._previous_trace = previous_trace
        self._loops: WeakKeyDictionary[object, asyncio.AbstractEventLoop] = WeakKeyDictionary()

    def __call__(self, event: str, switch: tuple[object, object]) -> None:
        """Stores the loop of the greenlet that is left, and sets the loop of the greenlet that is entered."""
        if self._previous_trace is not None:
            self._previous_trace(event, switch)
        left, entered = switch
        running = asyncio._get_running_loop()
        if running is not None:
            self._loops[left] = running
        if running is not None or self._loops:
            asyncio._set_running_loop(self._loops.pop(entered, None))


def install_loop_switcher() -> None:
    """Lets several greenlets of this thread run event loops; does nothing unless `threading` is patched."""
    if not is_threading_patched():
        return
    import greenlet

    if not isinstance(greenlet.gettrace(), _LoopSwitcher):
        greenlet.settrace(_LoopSwitcher(greenlet.gettrace()))
