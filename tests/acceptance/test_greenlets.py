"""Workers with greenlets, `-P gevent` and `-P eventlet`: contract section 6."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from stacks import POSTGRESQL, Stack
from worker import ROOT, Project, Worker, end, until

EFFECTS = """
    import asyncio
    import time

    from nitro import Entity, emit, on, transaction


    class Note(Entity, table=True):
        text: str


    def done(what):
        with open("done.txt", "a") as file:
            file.write(what + chr(10))


    @on("placed", offload=True)
    async def confirm(order, **kwargs):
        await asyncio.sleep(0.2)
        assert await asyncio.to_thread(str.upper, order) == order.upper()
        with transaction():
            Note(text=order).save()
            emit("confirmed", order)
        emit("seen", order)
        done("confirm")


    @on("confirmed", offload=True)
    def ship(order, **kwargs):
        async def ship():
            await asyncio.sleep(0.01)

        asyncio.run(ship())
        done("ship")


    @on("placed", offload={"delivery": "exactly-once"})
    def book(order, **kwargs):
        Note(text=order).save()
        time.sleep(0.02)
        done("book")


    @on("placed", offload={"delivery": "broker"})
    async def tell(order, **kwargs):
        async with asyncio.timeout(5):
            await asyncio.sleep(0.1)
        done("tell")


    @on("seen")
    async def note(order, **kwargs):
        await asyncio.sleep(0.01)
        done("note")


    @on("stuck", offload={"time_limit": 1, "max_retries": 1, "retry_backoff": False, "default_retry_delay": 0})
    async def hang(order, **kwargs):
        await asyncio.sleep(60)


    @on("stuck", offload={"time_limit": 1, "max_retries": 1, "retry_backoff": False, "default_retry_delay": 0})
    def sleep(order, **kwargs):
        time.sleep(60)


    @on("waited", offload=True)
    def wait(order, **kwargs):
        done("begun")
        time.sleep(1)
        done("ended")
"""
APP = """
    import os

    from celery import Celery
    from nitro.infrastructure.offload import bind

    app = Celery("green", broker=os.environ.get("BROKER"), include=["effects"])
    app.conf.task_default_queue = os.environ["QUEUE"]
    bind(app)
"""


@pytest.fixture(params=["gevent", "eventlet"])
def pool(request: pytest.FixtureRequest) -> str:
    """The pool of the worker."""
    return str(request.param)


@pytest.fixture
def project(stack: Stack, pool: str, tmp_path: Path) -> Project:
    """A project in its own folder, on the broker and the database of a stack."""
    for name, source in {"green": APP, "effects": EFFECTS}.items():
        (tmp_path / f"{name}.py").write_text(dedent(source))
    broker = stack.project.environ.get("NITRO_BROKER_URL")
    environ = {
        **({} if broker is None else {"BROKER": broker, "NITRO_DB_URL": stack.database}),
        "QUEUE": f"green-{pool}-{tmp_path.name}",
        "PSYCOPG_WAIT_FUNC": "wait_selector",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
        "PYTHONWARNINGS": "ignore",
    }
    green = Project(folder=tmp_path, app="green", environ=environ, logs=tmp_path)
    green.celery("nitro", "init")
    green.python("-c", "import green, effects; effects.Note.init_db()")
    return green


@pytest.fixture
def worker(project: Project, pool: str) -> Iterator[Worker]:
    """A worker of a hundred greenlets.

    The prefetch multiplier is for Redis, where Celery waits up to 2 s for a message under greenlets.
    """
    running = project.worker("green", "-P", pool, "-c", "100", "--prefetch-multiplier", "4")
    yield running
    end(running.process, within=0)


def emit(project: Project, event: str, times: int = 1) -> None:
    project.python("-c", f"import green, effects, nitro; [nitro.emit({event!r}, 'ada') for _ in range({times})]")


def effects(project: Project) -> Counter[str]:
    file = project.folder / "done.txt"
    return Counter(file.read_text().split()) if file.exists() else Counter()


def test_handlers_of_each_kind_run_side_by_side(project: Project, worker: Worker) -> None:
    """Async handlers, sync handlers with their own loop, transactions and emits run concurrently, once each."""
    emit(project, "placed", 25)
    kinds = ("confirm", "ship", "book", "tell", "note")
    until(lambda: all(effects(project)[kind] >= 25 for kind in kinds), within=60)
    assert effects(project) == dict.fromkeys(kinds, 25)
    assert not [line for line in worker.text.splitlines() if "ERROR" in line or "failed" in line]


def test_a_worker_that_is_asked_to_stop_finishes_what_it_runs(project: Project, worker: Worker) -> None:
    """A stopping worker finishes its running handler, and logs no error of its signal handler."""
    emit(project, "waited")
    until(lambda: effects(project)["begun"])
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(20) == 0
    assert effects(project) == {"begun": 1, "ended": 1}
    assert "raised" not in worker.text


@pytest.mark.parametrize("pool", ["gevent"], indirect=True)
def test_a_hard_time_limit_is_a_failure_of_the_handler(project: Project, worker: Worker) -> None:
    """A hard time limit under gevent is retried and then a dead letter, as in a process pool; eventlet has none."""
    emit(project, "stuck")

    def dead_letters() -> list[Any]:
        dead = json.loads(project.celery("nitro", "outbox", "list", "--state", "dead", "--event", "stuck", "--json"))
        return dead if len(dead) == 2 else []

    for delivery in until(dead_letters, within=60):
        assert (delivery["attempts"], delivery["error"]) == (2, "hard time limit of 1 s exceeded")


@pytest.mark.server
def test_a_driver_that_would_stop_all_greenlets_is_refused(tmp_path: Path) -> None:
    """A blocking PostgreSQL driver is refused in one line that names the pool and the remedy."""
    (tmp_path / "green.py").write_text(dedent(APP).replace(', include=["effects"]', ""))
    environ = {"QUEUE": "q", "NITRO_DB_URL": f"{POSTGRESQL}/postgres", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    project = Project(folder=tmp_path, app="green", environ=environ, logs=tmp_path)
    process: subprocess.Popen[bytes] = project.start("refused", "worker", "-P", "eventlet")
    assert process.wait(20) == 1
    message = project.log("refused").read_text().splitlines()[-1]
    assert message.startswith("Error: the eventlet pool")
    assert "PSYCOPG_WAIT_FUNC=wait_selector" in message
