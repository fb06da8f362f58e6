"""Greenlets: where gevent or eventlet has patched `threading`, many threads of Python's are one of the system's."""

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
    """Whether gevent says so that a time limit is over; it is no `Exception`."""
    gevent = sys.modules.get("gevent")
    return gevent is not None and isinstance(error, gevent.Timeout)


class _LoopSwitcher:
    """Has each greenlet see the event loop that it runs itself, where asyncio knows one of the system's thread.

    Told of every switch from one greenlet to another. Without it one that waits while a loop runs in another would
    be taken for a part of that loop, and a loop that goes on after another one has run would be without its own.
    """

    def __init__(self, before: Callable[[str, object], object] | None) -> None:
        self._previous_trace = before
        self._loops: WeakKeyDictionary[object, asyncio.AbstractEventLoop] = WeakKeyDictionary()

    def __call__(self, event: str, switch: tuple[object, object]) -> None:
        """Put the loop of the greenlet that is left aside, and that of the other one back."""
        if self._previous_trace is not None:
            self._previous_trace(event, switch)
        left, entered = switch
        running = asyncio._get_running_loop()
        if running is not None:
            self._loops[left] = running
        if running is not None or self._loops:
            asyncio._set_running_loop(self._loops.pop(entered, None))


def install_loop_switcher() -> None:
    """Let event loops run in greenlets of this thread of the system; nothing to do where threads are threads."""
    if not is_threading_patched():
        return
    import greenlet

    if not isinstance(greenlet.gettrace(), _LoopSwitcher):
        greenlet.settrace(_LoopSwitcher(greenlet.gettrace()))
