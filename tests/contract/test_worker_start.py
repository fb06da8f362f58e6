"""A worker survives the loss of pool processes while it starts: contract section 7."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from support.brokers import PLACES, on_server

SHOP = """
    import os
    import signal

    from celery import Celery
    from celery.signals import worker_process_init, worker_ready
    from nitro import emit, on
    from nitro.infrastructure.offload import bind

    app = Celery("shop", broker={broker!r})
    app.conf.task_default_queue = {queue!r}
    bind(app)
    FAILURE = {failure!r}


    @on("order.placed", offload={{"delivery": "at-least-once"}}, name="shop.confirm")
    def confirm(order):
        with open("confirmed", "a") as file:
            file.write(order)
        os.kill(os.getppid(), signal.SIGTERM)


    @worker_ready.connect(weak=False)
    def end_processes(sender, **_):
        for pid in sender.pool.info["processes"][:{killed}]:
            if FAILURE == "SIGKILL":
                os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        emit("order.placed", "o1")


    @worker_process_init.connect(weak=False)
    def fail(**_):
        if FAILURE == "exit":
            os._exit(3)
"""
WORKER = ("-m", "celery", "-A", "shop", "worker", "-c", "2", "--loglevel", "INFO")

Run = Callable[..., Any]


def work(fresh_process: Run, tmp_path: Path, *, failure: str, killed: int) -> Any:
    """Runs a worker until it ends; so many of its processes end before it is ready."""
    on_server("redis").close()
    shop = SHOP.format(failure=failure, killed=killed, broker=PLACES["redis"][0], queue=f"start-{uuid4()}")
    return fresh_process(shop, file="shop.py", arguments=WORKER, NITRO_DB_URL=f"sqlite:///{tmp_path / 'nitro.db'}")


@pytest.mark.server
@pytest.mark.acceptance
@pytest.mark.parametrize("killed", [1, 2])
def test_processes_killed_at_start_up_are_replaced(fresh_process: Run, tmp_path: Path, killed: int) -> None:
    """Killed processes are replaced, and the worker runs its delivery."""
    process = work(fresh_process, tmp_path, failure="SIGKILL", killed=killed)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "confirmed").read_text() == "o1"
    assert f"killed while the worker started: {killed};" in process.stderr


@pytest.mark.server
@pytest.mark.acceptance
def test_processes_that_cannot_start_end_the_worker(fresh_process: Run, tmp_path: Path) -> None:
    """Processes that cannot start end the worker, as Celery intends."""
    process = work(fresh_process, tmp_path, failure="exit", killed=2)
    assert "Could not start worker processes" in process.stderr
    assert not (tmp_path / "confirmed").exists()
