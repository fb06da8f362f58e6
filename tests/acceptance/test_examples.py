"""The quickstart works with the commands of its README."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from worker import ROOT, Worker, end, until

pytestmark = pytest.mark.acceptance

QUICKSTART = ROOT / "examples" / "quickstart"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartRun:
    """The output of the README's two commands.

    Attributes:
        printed: the program's output.
        invoice: the file that the worker wrote.
    """

    printed: str
    invoice: str
    worker: Worker


def commands() -> list[list[str]]:
    """Returns the README's commands, with `env` for the variables before a command."""
    blocks = re.findall(r"```sh\n(.*?)```", (QUICKSTART / "README.md").read_text(), re.DOTALL)
    return [["env", *shlex.split(line)] for block in blocks for line in block.splitlines()]


def environ() -> dict[str, str]:
    """Returns a newcomer's environment: without Nitro's settings, and with this interpreter's programs first."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
    return {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a new clone that the quickstart needs."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("examples", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "celeryconfig.py", folder)
    return folder


@pytest.fixture(scope="module")
def quickstart_run(folder: Path) -> Iterator[QuickstartRun]:
    """The output of both commands; the worker runs in the background."""
    start_worker, run_program = commands()
    log = folder / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            start_worker, cwd=folder, env=environ(), stdout=output, stderr=output, start_new_session=True
        )
    worker = Worker("quickstart", log, process)
    try:
        program = subprocess.run(run_program, cwd=folder, env=environ(), capture_output=True, text=True, timeout=60)
        assert program.returncode == 0, program.stderr
        invoice = until(lambda: "".join(path.read_text() for path in folder.glob("invoice-*.txt")))
        yield QuickstartRun(printed=program.stdout, invoice=invoice, worker=worker)
    finally:
        end(worker.process)


def pid_in(text: str) -> int:
    """Returns the process id in a text of a quickstart handler."""
    match = re.search(r"process (\d+)", text)
    assert match, text
    return int(match[1])


def test_the_quickstart_is_read_in_a_minute() -> None:
    """The quickstart's only file has at most 40 lines."""
    (file,) = QUICKSTART.glob("[!_]*.py")
    assert len(file.read_text().splitlines()) <= 40


def test_the_inline_handler_runs_in_the_program(quickstart_run: QuickstartRun) -> None:
    """The inline handler prints in the program."""
    assert "thank you, ada@example.com" in quickstart_run.printed


def test_the_offloaded_handler_runs_in_the_worker(quickstart_run: QuickstartRun) -> None:
    """The worker knows the handler by the name under which the script queues it."""
    assert quickstart_run.invoice.endswith("48.00 due\n")
    assert pid_in(quickstart_run.invoice) != pid_in(quickstart_run.printed)
    assert os.getpgid(pid_in(quickstart_run.invoice)) == quickstart_run.worker.pid


def test_the_offloaded_handler_runs_once(quickstart_run: QuickstartRun, folder: Path) -> None:
    """The one order has one invoice."""
    assert len(list(folder.glob("invoice-*.txt"))) == 1


def test_the_quickstart_needs_no_server(quickstart_run: QuickstartRun, folder: Path) -> None:
    """The quickstart uses a database file and a broker folder beside it, and no server."""
    assert (folder / "nitro.db").exists()
    assert (folder / ".nitro").is_dir()
    assert "folder://" in quickstart_run.worker.text
