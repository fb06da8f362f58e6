"""Who runs a delivery: the boot of a worker, which its pool's processes inherit, and the process and thread."""

from __future__ import annotations

import os
import threading
from uuid import uuid4

_BOOT = "_NITRO_WORKER_BOOT"


def new_boot() -> str:
    """A name for a worker that starts, never used before; known to its pool's processes however they begin."""
    os.environ[_BOOT] = str(uuid4())
    return os.environ[_BOOT]


def boot() -> str:
    """The worker that this process is of."""
    return os.environ.get(_BOOT) or new_boot()


def here() -> str:
    """What runs on this thread: `boot/process-thread`."""
    return f"{process(boot(), os.getpid())}{threading.get_ident():x}"


def process(boot: str, pid: int) -> str:
    """What the names of all threads of a worker's process begin with."""
    return f"{boot}/{pid}-"
