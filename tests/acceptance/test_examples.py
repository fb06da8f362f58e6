"""The quickstart does what its README says, with the README's own commands."""

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
class Tried:
    """What the two commands of the README did.

    Attributes:
        printed: by the program.
        invoice: what the worker wrote.
    """

    printed: str
    invoice: str
    worker: Worker


def commands() -> list[list[str]]:
    """The README's commands; the variables before one are set by `env`."""
    blocks = re.findall(r"```sh\n(.*?)```", (QUICKSTART / "README.md").read_text(), re.DOTALL)
    return [["env", *shlex.split(line)] for block in blocks for line in block.splitlines()]


def environ() -> dict[str, str]:
    """A newcomer's environment: no setting of ours, and the programs of this interpreter first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NITRO_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a fresh clone's, as far as the quickstart needs it."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("examples", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "celeryconfig.py", folder)
    return folder


@pytest.fixture(scope="module")
def tried(folder: Path) -> Iterator[Tried]:
    """Both commands, the first in the background."""
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
        yield Tried(printed=program.stdout, invoice=invoice, worker=worker)
    finally:
        end(worker.process)


def pid_in(text: str) -> int:
    """The process id that the handlers of the quickstart name."""
    found = re.search(r"process (\d+)", text)
    assert found, text
    return int(found[1])


def test_the_quickstart_is_read_in_a_minute() -> None:
    """Its one file has at most 40 lines."""
    (file,) = QUICKSTART.glob("[!_]*.py")
    assert len(file.read_text().splitlines()) <= 40


def test_the_inline_handler_runs_in_the_program(tried: Tried) -> None:
    """It has printed before the program ends."""
    assert "thank you, ada@example.com" in tried.printed


def test_the_offloaded_handler_runs_in_the_worker(tried: Tried) -> None:
    """The worker knows it by the name under which a script that is run as `__main__` queues it."""
    assert tried.invoice.endswith("48.00 due\n")
    assert pid_in(tried.invoice) != pid_in(tried.printed)
    assert os.getpgid(pid_in(tried.invoice)) == tried.worker.pid


def test_the_offloaded_handler_runs_once(tried: Tried, folder: Path) -> None:
    """The program placed one order, so there is one invoice."""
    assert len(list(folder.glob("invoice-*.txt"))) == 1


def test_the_quickstart_needs_no_server(tried: Tried, folder: Path) -> None:
    """What it has used are files beside it: the database, and the folder of the broker."""
    assert (folder / "nitro.db").exists()
    assert (folder / ".nitro").is_dir()
    assert "folder://" in tried.worker.text
