"""Handlers that kill their process, never end, or use up the memory."""

from __future__ import annotations

import ctypes
import os
import resource

from victim.handlers import ONCE

from nitro import Offload, on

HOG = 256 * 2**20
"""Bytes that a process may allocate beyond its present size."""


@on("poison.exit", offload=Offload(**ONCE))
def leave(sender: str, key: str) -> None:
    os._exit(3)


@on("poison.crash", offload=Offload(**ONCE))
def crash(sender: str, key: str) -> None:
    ctypes.string_at(0)


@on("poison.loop", offload=Offload(time_limit=1, max_retries=1, retry_backoff=1, retry_jitter=False, **ONCE))
def loop(sender: str, key: str) -> None:
    while True:
        pass


@on("poison.hog", offload=Offload(max_retries=0, **ONCE))
def hog(sender: str, key: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:  # noqa: PTH123  # no more memory than this takes
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HOG, before[1]))
    try:
        bytearray(4 * HOG)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
