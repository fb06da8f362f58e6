"""The commands of the documentation work as their pages say, page by page, in a folder like a reader's."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import pytest

from pages import ROOT, Block, blocks, name_of, pages
from worker import end, until

DOCUMENTED = Path(__file__).parent / "documented"
TIMEOUT_SECONDS = 60.0
"""Seconds for a command, and for its expected output."""


def is_run(block: Block) -> bool:
    """Whether the tests run a block's commands."""
    return block.language in ("console", "hidden") and block.skip is None


PAGES = [page for page in pages() if any(is_run(block) for block in blocks(page))]


@dataclass
class Reader:
    """A folder in which the commands of a page are run."""

    folder: Path
    environ: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def follow(self, block: Block) -> None:
        """Saves the block's file, or executes its commands."""
        if block.file is not None:
            (self.folder / block.file).write_text(block.text)
            shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
        elif is_run(block):
            for command in block.commands:
                if block.background is not None:
                    self.start(command, block.background)
                else:
                    self.execute(command, block.prints)

    def execute(self, command: str, prints: str | None) -> None:
        """Executes a command, repeatedly until it prints the text that the page shows."""
        deadline = monotonic() + TIMEOUT_SECONDS
        while True:
            process = self.run(re.sub(r"\bID\b", self.dead_letter, command))
            if prints is None or prints in process.stdout or monotonic() > deadline:
                break
        assert process.returncode == 0, f"{command}\n{process.stdout}\n{process.stderr}"
        assert prints is None or prints in process.stdout, f"{command}\n{process.stdout}\n{process.stderr}"

    def start(self, command: str, ready: str) -> None:
        """Starts a command in the background, and waits until it has printed a text."""
        log = self.folder / f"{len(self.processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self.environ,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append(process)

        def is_ready() -> bool:
            assert process.poll() is None, f"{command}\n{log.read_text()}"
            return ready in log.read_text(errors="replace")

        until(is_ready, TIMEOUT_SECONDS)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command, and answers yes to its question."""
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=self.environ,
            input="y\n",
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )

    def dead_letter(self, _match: re.Match[str]) -> str:
        """Returns the id of a dead letter as soon as one exists; it replaces the page's placeholder ID."""
        listing = shlex.join(["celery", "-A", "myapp", "nitro", "outbox", "list", "--state", "dead", "--json"])
        return str(until(lambda: json.loads(self.run(listing).stdout or "[]"), TIMEOUT_SECONDS)[0]["id"])


@contextmanager
def reader(folder: Path) -> Iterator[Reader]:
    """A reader with the installed programs, a free port for Flower and the app of `documented`."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("NITRO_", "FLOWER_", "CELERY_"))
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    programs = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
    environ = {**inherited, "PATH": programs, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "FLOWER_PORT": port}
    reader_of_page = Reader(folder, environ)
    for file in DOCUMENTED.glob("*.py"):
        shutil.copy(file, folder)
    try:
        yield reader_of_page
    finally:
        end(*reader_of_page.processes)
        for process in reader_of_page.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_work(page: Path, tmp_path: Path) -> None:
    """The commands of a page run one after the other in one folder, and print what the page shows."""
    with reader(tmp_path) as reader_of_page:
        for block in blocks(page):
            reader_of_page.follow(block)


def test_there_are_pages_with_commands() -> None:
    """The tutorial and the pages about deploying and being on call have commands that are run."""
    assert {"tutorial.md", "deploy.md", "on-call.md", "own-app.md"} <= {page.name for page in PAGES}
