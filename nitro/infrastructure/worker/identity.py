"""Who runs a delivery: the boot of a worker, which its pool's processes inherit, and the process and thread."""

from __future__ import annotations

import os
import threading
from uuid import uuid4

_WORKER_ID_VARIABLE = "_NITRO_WORKER_BOOT"


def new_worker_id() -> str:
    """A name for a worker that starts, never used before; known to its pool's processes however they begin."""
    os.environ[_WORKER_ID_VARIABLE] = str(uuid4())
    return os.environ[_WORKER_ID_VARIABLE]


def worker_id() -> str:
    """The worker that this process is of."""
    return os.environ.get(_WORKER_ID_VARIABLE) or new_worker_id()


def runner_id() -> str:
    """What runs on this thread: `boot/process-thread`."""
    return f"{runner_prefix(worker_id(), os.getpid())}{threading.get_ident():x}"


def runner_prefix(boot: str, pid: int) -> str:
    """What the names of all threads of a worker's process begin with."""
    return f"{boot}/{pid}-"
