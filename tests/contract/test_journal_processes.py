"""The journal of processes of their own: what they have noted is written by their end, and by nobody else."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

PATIENCE = 15.0

Process = Callable[..., Any]

HANDLERS = """
from nitro.infrastructure.events import emit, on

@on("order.placed", name="shop.stock")
def stock(sender, **kwargs):
    print("reserved for", sender, flush=True)

"""
HOLD = """
from nitro.infrastructure.outbox import journal

def hold():  # from now on nothing is written but by the end of a process
    emit("warm-up")
    assert journal.journal.flush(20)
    journal.BATCH_DELAY_SECONDS = 3600.0

hold()
"""


def events(folder: Path) -> list[str]:
    """The events of what is recorded in the database of a folder, the earliest first."""
    asked = "SELECT event FROM nitro_emission WHERE event <> 'warm-up' ORDER BY id"
    return [str(row[0]) for row in _asked(folder, asked)]


def _asked(folder: Path, query: str) -> list[Any]:
    with sqlite3.connect(folder / "nitro.db") as connection:
        return list(connection.execute(query))


def test_a_process_with_inline_handlers_only_is_recorded(fresh_process: Process, tmp_path: Path) -> None:
    """From its first emission, without a word more than the setting; it prints nothing of its own."""
    ended = fresh_process(HANDLERS + "emit('order.placed', 'ada')\nemit('order.placed', 'bob')", NITRO_JOURNAL="on")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "reserved for ada\nreserved for bob\n"
    assert events(tmp_path) == ["order.placed"] * 2


@pytest.mark.parametrize("environ", [{}, {"NITRO_JOURNAL": "off"}, {"NITRO_JOURNAL": ""}])
def test_without_the_setting_nothing_is_loaded(fresh_process: Process, tmp_path: Path, environ: dict[str, str]) -> None:
    """Neither a database is made, nor celery and SQL imported for it."""
    source = "emit('order.placed', 'ada')\nimport sys\nprint({'celery', 'sqlalchemy'} & set(sys.modules))"
    ended = fresh_process(HANDLERS + source, **environ)
    assert (ended.returncode, ended.stdout) == (0, "reserved for ada\nset()\n")
    assert not (tmp_path / "nitro.db").exists()


def test_another_setting_is_an_error(fresh_process: Process) -> None:
    """Where the first handler is declared; it names the setting, its value and what is allowed."""
    ended = fresh_process("print('begun')" + HANDLERS + "emit('order.placed', 'ada')", NITRO_JOURNAL="maybe")
    assert (ended.returncode, ended.stdout) == (1, "begun\n")
    assert '@on("order.placed"' in ended.stderr
    assert (
        ended.stderr.splitlines()[-1]
        == "nitro.errors.SettingError: NITRO_JOURNAL='maybe' is not allowed; give one of off, on"
    )


@pytest.mark.parametrize("way", ["emit", "emit_async"])
def test_awaited_or_not_it_is_recorded(fresh_process: Process, tmp_path: Path, way: str) -> None:
    """Whichever comes first in a process."""
    calls = {
        "emit": "emit('order.placed', 'ada')",
        "emit_async": "import asyncio\nfrom nitro import emit_async\nasyncio.run(emit_async('order.placed', 'ada'))",
    }
    fresh_process(HANDLERS + calls[way], NITRO_JOURNAL="on")
    assert events(tmp_path) == ["order.placed"]


def test_a_script_that_fails_is_recorded(fresh_process: Process, tmp_path: Path) -> None:
    """What it had emitted before, and why that raised."""
    failing = "@on('order.paid', name='shop.books')\ndef books(sender):\n    raise LookupError('no book')\n"
    ended = fresh_process(HANDLERS + failing + "emit('order.placed')\nemit('order.paid')", NITRO_JOURNAL="on")
    assert ended.returncode == 1
    assert events(tmp_path) == ["order.placed", "order.paid"]
    ((story,),) = _asked(tmp_path, "SELECT story FROM nitro_emission WHERE event = 'order.paid'")
    assert json.loads(story)["error"] == "LookupError: no book"


def test_what_async_handlers_emit_at_the_end_is_recorded(fresh_process: Process, tmp_path: Path) -> None:
    """The exit waits for them, and then for the journal."""
    late = (
        "import asyncio, threading\n"
        "@on('order.paid', name='shop.mail')\n"
        "async def mail(sender):\n"
        "    while threading.main_thread().is_alive():\n"
        "        await asyncio.sleep(0.01)\n"
        "    emit('order.placed', sender)\n"
    )
    ended = fresh_process(HANDLERS + HOLD + late + "emit('order.paid', 'ada')", NITRO_JOURNAL="on")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert events(tmp_path) == ["order.paid", "order.placed"]


@pytest.mark.parametrize("warm", [False, True])
def test_what_an_exit_function_emits_is_recorded(fresh_process: Process, tmp_path: Path, warm: bool) -> None:
    """Also in one that runs after everything else, be it the first emission of all."""
    late = "import atexit\natexit.register(lambda: emit('order.placed', 'ada'))\n"
    ended = fresh_process(late + HANDLERS + (HOLD if warm else ""), NITRO_JOURNAL="on")
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "reserved for ada\n")
    assert events(tmp_path) == ["order.placed"]


def test_a_forked_child_writes_its_own_notes_only(fresh_process: Process, tmp_path: Path) -> None:
    """Those of its parent, which is killed here before it writes any, are not the child's to write."""
    forking = (
        "import os, sys\n"
        "emit('of.parent')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    hold()\n"
        "    emit('of.child')\n"
        "    sys.exit()\n"
        "os.waitpid(child, 0)\n"
        "os._exit(7)\n"
    )
    ended = fresh_process(HANDLERS + HOLD + forking, NITRO_JOURNAL="on")
    assert ended.returncode == 7
    assert events(tmp_path) == ["of.child"]


def test_a_child_of_multiprocessing_writes_its_notes(fresh_process: Process, tmp_path: Path) -> None:
    """Where functions of atexit do not run; the parent writes its own."""
    children = (
        "import multiprocessing\n"
        "def work():\n"
        "    hold()\n"
        "    emit('of.child')\n"
        "emit('of.parent')\n"
        "child = multiprocessing.get_context('fork').Process(target=work)\n"
        "child.start()\n"
        "child.join()\n"
    )
    ended = fresh_process(HANDLERS + HOLD + children, NITRO_JOURNAL="on")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(events(tmp_path)) == ["of.child", "of.parent"]


def test_a_database_that_stays_away_does_not_keep_a_process_for_ever(fresh_process: Process) -> None:
    """After 5 s, here shortened, what it has noted is given up, and the log says how much that is."""
    loaded = "from nitro.infrastructure.outbox import journal\n"
    shorter = f"{loaded}print(journal.EXIT_WAIT_SECONDS)\njournal.EXIT_WAIT_SECONDS = 0.2\n"
    away = {"NITRO_JOURNAL": "on", "NITRO_DB_URL": "postgresql://postgres@127.0.0.1:9/away"}
    began = monotonic()
    ended = fresh_process(HANDLERS + shorter + "emit('order.placed', 'ada')", **away)
    assert monotonic() - began < PATIENCE
    assert (ended.returncode, ended.stdout) == (0, "5.0\nreserved for ada\n")
    assert "1 emissions are not in the journal: the database does not take them" in ended.stderr


def test_an_outdated_database_is_said(fresh_process: Process) -> None:
    """A server's tables are made by `nitro init`: emits go on, the log says what to do."""
    shorter = "from nitro.infrastructure.outbox import journal\njournal.EXIT_WAIT_SECONDS = 0.2\n"
    older = (
        "from sqlalchemy import update\n"
        "from nitro.infrastructure.database import create_tables, reset, write_connection\n"
        "from nitro.infrastructure.outbox.schema import schema_versions\n"
        "create_tables()\n"
        "with write_connection() as connection:\n"
        "    connection.execute(update(schema_versions).values(version=99, usable_from=99))\n"
        "reset()\n"
    )
    ended = fresh_process(HANDLERS + shorter + older + "emit('order.placed', 'ada')", NITRO_JOURNAL="on")
    assert (ended.returncode, ended.stdout) == (0, "reserved for ada\n")
    assert "are of version 99" in ended.stderr
