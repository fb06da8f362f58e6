"""A worker whose pool processes are killed while it starts: contract section 7."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from brokers import PLACES, on_server

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
    DYING = {dying!r}


    @on("order.placed", offload={{"delivery": "at-least-once"}}, name="shop.confirm")
    def confirm(order):
        with open("confirmed", "a") as file:
            file.write(order)
        os.kill(os.getppid(), signal.SIGTERM)


    @worker_ready.connect(weak=False)
    def end_some(sender, **_):
        for pid in sender.pool.info["processes"][:{killed}]:
            if DYING == "SIGKILL":
                os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        emit("order.placed", "o1")


    @worker_process_init.connect(weak=False)
    def fail(**_):
        if DYING == "exit":
            os._exit(3)
"""
WORKER = ("-m", "celery", "-A", "shop", "worker", "-c", "2", "--loglevel", "INFO")

Run = Callable[..., Any]


def work(fresh_process: Run, tmp_path: Path, *, dying: str, killed: int) -> Any:
    """Run a worker to its end, in which as many processes end before it is ready."""
    on_server("redis").close()
    shop = SHOP.format(dying=dying, killed=killed, broker=PLACES["redis"][0], queue=f"start-{uuid4()}")
    return fresh_process(shop, file="shop.py", arguments=WORKER, NITRO_DB_URL=f"sqlite:///{tmp_path / 'nitro.db'}")


@pytest.mark.server
@pytest.mark.acceptance
@pytest.mark.parametrize("killed", [1, 2])
def test_processes_killed_at_start_up_are_replaced(fresh_process: Run, tmp_path: Path, killed: int) -> None:
    """The worker lives and does its work, as when they are killed later."""
    done = work(fresh_process, tmp_path, dying="SIGKILL", killed=killed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "confirmed").read_text() == "o1"
    assert f"killed while the worker started: {killed};" in done.stderr


@pytest.mark.server
@pytest.mark.acceptance
def test_processes_that_cannot_start_end_the_worker(fresh_process: Run, tmp_path: Path) -> None:
    """As Celery wants it: they would end again and again."""
    done = work(fresh_process, tmp_path, dying="exit", killed=2)
    assert "Could not start worker processes" in done.stderr
    assert not (tmp_path / "confirmed").exists()
