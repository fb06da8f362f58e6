"""Journals of several processes: each writes its own notes by its end, and no other process writes them."""

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
from support import journals

def hold():
    emit("warm-up")
    journals.flush()
    journals.write_at_exit_only()

hold()
"""


def events(folder: Path) -> list[str]:
    """Returns the recorded events of the database in a folder, the earliest first."""
    query = "SELECT event FROM nitro_emission WHERE event <> 'warm-up' ORDER BY id"
    return [str(row[0]) for row in _select(folder, query)]


def _select(folder: Path, query: str) -> list[Any]:
    with sqlite3.connect(folder / "nitro.db") as connection:
        return list(connection.execute(query))


def test_a_process_with_inline_handlers_only_is_recorded(fresh_process: Process, tmp_path: Path) -> None:
    """With the setting alone a process is recorded from its first emission, and prints nothing more."""
    process = fresh_process(HANDLERS + "emit('order.placed', 'ada')\nemit('order.placed', 'bob')", NITRO_JOURNAL="on")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == "reserved for ada\nreserved for bob\n"
    assert events(tmp_path) == ["order.placed"] * 2


@pytest.mark.parametrize("environ", [{}, {"NITRO_JOURNAL": "off"}, {"NITRO_JOURNAL": ""}])
def test_without_the_setting_nothing_is_loaded(fresh_process: Process, tmp_path: Path, environ: dict[str, str]) -> None:
    """Without the setting no database is created, and neither Celery nor SQLAlchemy is imported."""
    source = "emit('order.placed', 'ada')\nimport sys\nprint({'celery', 'sqlalchemy'} & set(sys.modules))"
    process = fresh_process(HANDLERS + source, **environ)
    assert (process.returncode, process.stdout) == (0, "reserved for ada\nset()\n")
    assert not (tmp_path / "nitro.db").exists()


def test_another_setting_is_an_error(fresh_process: Process) -> None:
    """A wrong value raises at the first handler; the error names the setting, its value and the allowed ones."""
    process = fresh_process("print('begun')" + HANDLERS + "emit('order.placed', 'ada')", NITRO_JOURNAL="maybe")
    assert (process.returncode, process.stdout) == (1, "begun\n")
    assert '@on("order.placed"' in process.stderr
    assert (
        process.stderr.splitlines()[-1]
        == "nitro.errors.SettingError: NITRO_JOURNAL='maybe' is not allowed; give one of off, on"
    )


@pytest.mark.parametrize("function", ["emit", "emit_async"])
def test_awaited_or_not_it_is_recorded(fresh_process: Process, tmp_path: Path, function: str) -> None:
    """The first emission of a process is recorded, by `emit` and by `emit_async`."""
    calls = {
        "emit": "emit('order.placed', 'ada')",
        "emit_async": "import asyncio\nfrom nitro import emit_async\nasyncio.run(emit_async('order.placed', 'ada'))",
    }
    fresh_process(HANDLERS + calls[function], NITRO_JOURNAL="on")
    assert events(tmp_path) == ["order.placed"]


def test_a_script_that_fails_is_recorded(fresh_process: Process, tmp_path: Path) -> None:
    """The emissions of a script that fails are recorded, with the error of the failing one."""
    failing = "@on('order.paid', name='shop.books')\ndef books(sender):\n    raise LookupError('no book')\n"
    process = fresh_process(HANDLERS + failing + "emit('order.placed')\nemit('order.paid')", NITRO_JOURNAL="on")
    assert process.returncode == 1
    assert events(tmp_path) == ["order.placed", "order.paid"]
    ((story,),) = _select(tmp_path, "SELECT story FROM nitro_emission WHERE event = 'order.paid'")
    assert json.loads(story)["error"] == "LookupError: no book"


def test_what_async_handlers_emit_at_the_end_is_recorded(fresh_process: Process, tmp_path: Path) -> None:
    """The exit waits for async handlers, and then for the journal."""
    late = (
        "import asyncio, threading\n"
        "@on('order.paid', name='shop.mail')\n"
        "async def mail(sender):\n"
        "    while threading.main_thread().is_alive():\n"
        "        await asyncio.sleep(0.01)\n"
        "    emit('order.placed', sender)\n"
    )
    process = fresh_process(HANDLERS + HOLD + late + "emit('order.paid', 'ada')", NITRO_JOURNAL="on")
    assert (process.returncode, process.stderr) == (0, "")
    assert events(tmp_path) == ["order.paid", "order.placed"]


@pytest.mark.parametrize("warm", [False, True])
def test_what_an_exit_function_emits_is_recorded(fresh_process: Process, tmp_path: Path, warm: bool) -> None:
    """An emission of an `atexit` function that runs last is recorded, also as the first of all."""
    late = "import atexit\natexit.register(lambda: emit('order.placed', 'ada'))\n"
    process = fresh_process(late + HANDLERS + (HOLD if warm else ""), NITRO_JOURNAL="on")
    assert (process.returncode, process.stderr, process.stdout) == (0, "", "reserved for ada\n")
    assert events(tmp_path) == ["order.placed"]


def test_a_forked_child_writes_its_own_notes_only(fresh_process: Process, tmp_path: Path) -> None:
    """A forked child writes its own notes, and no notes of its parent."""
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
    process = fresh_process(HANDLERS + HOLD + forking, NITRO_JOURNAL="on")
    assert process.returncode == 7
    assert events(tmp_path) == ["of.child"]


def test_a_child_of_multiprocessing_writes_its_notes(fresh_process: Process, tmp_path: Path) -> None:
    """A child of multiprocessing, which runs no `atexit` functions, writes its own notes."""
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
    process = fresh_process(HANDLERS + HOLD + children, NITRO_JOURNAL="on")
    assert (process.returncode, process.stderr) == (0, "")
    assert sorted(events(tmp_path)) == ["of.child", "of.parent"]


def test_a_database_that_stays_away_does_not_keep_a_process_for_ever(fresh_process: Process) -> None:
    """After 5 s, here shortened, the exit drops the notes, and the log counts them."""
    shorter = "from support import journals\nprint(journals.exit_wait())\njournals.set_exit_wait(0.2)\n"
    away = {"NITRO_JOURNAL": "on", "NITRO_DB_URL": "postgresql://postgres@127.0.0.1:9/away"}
    started_at = monotonic()
    process = fresh_process(HANDLERS + shorter + "emit('order.placed', 'ada')", **away)
    assert monotonic() - started_at < PATIENCE
    assert (process.returncode, process.stdout) == (0, "5.0\nreserved for ada\n")
    assert "1 emissions are not in the journal: the database does not take them" in process.stderr


def test_an_outdated_database_is_said(fresh_process: Process) -> None:
    """Emits succeed with tables of another version, and the log names the version."""
    later = (
        "from nitro.infrastructure.database import create_tables\n"
        "from support import journals, tables\n"
        "journals.set_exit_wait(0.2)\n"
        "create_tables()\n"
        "tables.set_version(99, usable_from=99)\n"
    )
    process = fresh_process(HANDLERS + later + "emit('order.placed', 'ada')", NITRO_JOURNAL="on")
    assert (process.returncode, process.stdout) == (0, "reserved for ada\n")
    assert "are of version 99" in process.stderr
