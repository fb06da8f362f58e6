"""`NITRO_JOURNAL=on` in a worker: what the processes of its pool note is recorded, whatever becomes of them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import ROOT, Project, Worker, end, until

HANDLERS = """
from nitro import emit, on
from nitro.infrastructure.outbox import journal

@on("inline", name="shop.inline")
def inline(sender, **kwargs):
    return sender

@on("placed", name="shop.mail", offload={"max_retries": 0})
def mail(sender, *, last=False):
    emit("inline", sender)
    if not last:
        assert journal.journal.flush(20)
        journal.BATCH_DELAY_SECONDS = 3600.0  # nothing is written from now on, but by the end of the process
"""
EMITTER = "import shop, sys\nfrom nitro import emit\nemit('placed', sys.argv[1], last=sys.argv[1] == 'last')"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project on a machine without any server."""
    (tmp_path / "shop.py").write_text(HANDLERS)
    environ = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
        "NITRO_HANDLERS": "shop",
        "NITRO_JOURNAL": "on",
        "NITRO_DB_URL": f"sqlite:///{tmp_path / 'nitro.db'}",
        "NITRO_HOME": str(tmp_path / "home"),
    }
    return Project(folder=tmp_path, app="tasks", environ=environ, logs=tmp_path)


def told(project: Project, query: str) -> list[str]:
    """The first column of what a query gives."""
    with sqlite3.connect(project.folder / "nitro.db") as connection:
        return [str(row[0]) for row in connection.execute(query)]


def done(project: Project) -> int:
    """How many deliveries are done."""
    return len(told(project, "SELECT id FROM nitro_delivery WHERE state = 'done'"))


@pytest.fixture(params=[("-P", "prefork", "-c", "1"), ("-P", "threads", "-c", "2"), ("-P", "solo")])
def worker(project: Project, request: pytest.FixtureRequest) -> Iterator[Worker]:
    """A worker of each pool whose process has written one note, and holds the next ones back."""
    worker = project.worker("journal", *request.param)
    try:
        project.python("-c", EMITTER, "first")
        until(lambda: done(project) == 1)
        yield worker
    finally:
        end(worker.process)


def test_a_process_of_a_pool_writes_its_notes_before_it_ends(project: Project, worker: Worker) -> None:
    """What its handlers have emitted inline is told of, although it ends right after."""
    project.python("-c", EMITTER, "last")
    until(lambda: done(project) == 2)
    recorded = "SELECT event FROM nitro_emission ORDER BY id"
    assert told(project, recorded) == ["placed", "inline", "placed"]
    end(worker.process)
    assert worker.process.returncode == 0
    assert told(project, recorded) == ["placed", "inline", "placed", "inline"]
    by = "SELECT json_extract(story, '$.caused_in') FROM nitro_emission WHERE event = 'inline'"
    assert told(project, by) == ["shop.mail", "shop.mail"]
