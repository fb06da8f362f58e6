"""Ids of workers and runners. The environment passes the worker's id to the processes of its pool."""

from __future__ import annotations

import os
import threading
from uuid import uuid4

_WORKER_ID_VARIABLE = "_NITRO_WORKER_BOOT"


def new_worker_id() -> str:
    """Makes a new id for a starting worker, and sets it in the environment for the processes of its pool."""
    os.environ[_WORKER_ID_VARIABLE] = str(uuid4())
    return os.environ[_WORKER_ID_VARIABLE]


def worker_id() -> str:
    """Returns the id of the worker that this process belongs to."""
    return os.environ.get(_WORKER_ID_VARIABLE) or new_worker_id()


def runner_id() -> str:
    """Returns the id of this thread as a runner: `worker/process-thread`."""
    return f"{runner_prefix(worker_id(), os.getpid())}{threading.get_ident():x}"


def runner_prefix(worker: str, pid: int) -> str:
    """Returns the prefix of the runner ids of a worker's process."""
    return f"{worker}/{pid}-"
